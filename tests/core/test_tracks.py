"""Tracks as others write them: editors' JSON, with boxes, and ComfyUI's own TRACKS, in and out."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vc_core.errors import UserError
from vc_core.extract.drawing import Rectangle
from vc_core.extract.motion.tracks import (
    Track,
    native_to_tracks,
    parse_tracks,
    read_tracks,
    resample_track,
    tracks_field,
    tracks_to_native,
)

SIZE, FRAMES = (48, 64), 5
quick = settings(max_examples=20, deadline=None)


def track(*points) -> torch.Tensor:
    return torch.tensor(points, dtype=torch.float64)


# --- tracks as editors write them -----------------------------------------------------------------------------

SINGLE = [{"x": 1, "y": 2.5}, {"x": 3, "y": 4, "t": 7}]
TWO = [SINGLE, [{"x": 9, "y": 9}]]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (SINGLE, [[[1, 2.5], [3, 4]]]),
        (json.dumps(SINGLE), [[[1, 2.5], [3, 4]]]),
        (str(SINGLE), [[[1, 2.5], [3, 4]]]),  # Python's quotes
        (TWO, [[[1, 2.5], [3, 4]], [[9, 9]]]),
        (json.dumps(TWO), [[[1, 2.5], [3, 4]], [[9, 9]]]),
        ([json.dumps(SINGLE), json.dumps(TWO)], [[[1, 2.5], [3, 4]], [[1, 2.5], [3, 4]], [[9, 9]]]),
        ("[[1, 2], [3, 4]]", [[[1, 2], [3, 4]]]),
        ("[[[1, 2], [3, 4]], [[5, 6]]]", [[[1, 2], [3, 4]], [[5, 6]]]),
    ],
)
def test_tracks_are_read_in_every_form(source, expected):
    assert [track.points.tolist() for track in parse_tracks(source)] == expected


def test_a_track_may_carry_a_box():
    boxed = {"box": {"x": 10, "y": 20, "width": 30, "height": 40}, "path": SINGLE}
    for source in (boxed, json.dumps(boxed), [boxed], str([{**boxed, "box": [10, 20, 30, 40]}])):
        (read,) = parse_tracks(source)
        assert (read.points.tolist(), read.box) == ([[1, 2.5], [3, 4]], Rectangle(10, 20, 40, 60))
    among = parse_tracks([SINGLE, boxed])
    assert [track.box is None for track in among] == [True, False]
    wider = among[1].scaled(2, 0.5)
    assert (wider.points.tolist(), wider.box) == ([[2, 1.25], [6, 2]], Rectangle(20, 10, 80, 30))
    assert among[0].scaled(2, 0.5).box is None


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("", "There are no tracks"),
        ("[{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "no tracks"),
        ('{"x": 1, "y": 2}', "no tracks"),
        ("7", "no tracks"),
        ("[[]]", "track 1: There are no points"),
        ('[{"x": 1}]', "tracks.json: Point 1 is {'x': 1}"),
        ('[{"x": 1, "y": 2}, {"x": 1}]', "Point 2 is {'x': 1}"),
        ('[{"x": 1, "y": NaN}]', "tracks.json: Point 1 is {'x': 1, 'y': nan}"),
        ('[{"x": "1", "y": "2"}, {"x": 3, "y": 4}]', "tracks.json: Point 1 is {'x': '1', 'y': '2'}"),
        ("[null, [1, 2]]", "tracks.json: Point 1 is None"),
        ('[["1", "2"], ["3", "4"]]', "tracks.json: Point 1 is ['1', '2']"),
        ("[[1, 2], [3, Infinity]]", "tracks.json: Point 2 is [3, inf]"),
        ("[[1, 2, 3]]", "tracks.json: Point 1 is [1, 2, 3]"),
        ("[[[1, 2]], [[1, 2], [3, null]]]", "tracks.json, track 2: Point 2 is [3, None]"),
        ('[[{"x": NaN, "y": 2}]]', "tracks.json, track 1: Point 1 is {'x': nan, 'y': 2}"),
        ('[{"x": 1, "y": 2}, {"x": 1e999, "y": 2}]', "Point 2 is"),
        ('[[{"x": 1, "y": 2}], [{"x": "1", "y": 2}]]', "track 2: Point 1"),
        ('[{"x": true, "y": 2}]', "spline editors"),
        (['[{"x": 1, "y": 2}]', "what"], "text 2: The text is not valid JSON"),
        ('{"box": [1, 2, 3, 4]}', "track 1: There are no points"),
        ('[{"box": [1, 2, 3, 0], "path": [[1, 2]]}]', "track 1: Invalid box [1, 2, 3, 0]"),
        ('[[[1, 2]], {"box": {"x": 1, "y": 2, "width": 3}, "path": [[1, 2]]}]', "track 2: Invalid box {'x': 1"),
    ],
)
def test_what_is_not_a_track_is_reported(source, says):
    with pytest.raises(UserError) as error:
        parse_tracks(source, "tracks.json")
    assert says in str(error.value) and str(error.value).startswith("tracks.json")
    assert "\n" not in str(error.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["x", "y", "z", "box", "path"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(json_values)
def test_any_json_is_tracks_or_reported(value):
    for source in (value, json.dumps(value)):
        try:
            tracks = parse_tracks(source)
        except UserError:
            continue
        assert tracks and all(track.points.ndim == 2 and track.points.shape[1] == 2 for track in tracks)
        assert all(torch.isfinite(track.points).all() for track in tracks)


def test_tracks_from_a_file(tmp_path):
    path = tmp_path / "meine Spuren ü.json"
    path.write_text(json.dumps(TWO), encoding="utf-8-sig")  # with the mark that Windows' editors put first
    assert [len(track.points) for track in read_tracks(path)] == [2, 1]
    for content, says in ((b"\xff\xfe\x00", "cannot be read"), (b"{}", "no tracks")):
        path.write_bytes(content)
        with pytest.raises(UserError, match=says) as error:
            read_tracks(path)
        assert str(path) in str(error.value)
    with pytest.raises(UserError, match=r"missing\.json"):
        read_tracks(tmp_path / "missing.json")


def test_tracks_are_resampled_to_the_frames():
    drawn = track((0, 0), (1, 0), (10, 0))
    assert torch.equal(resample_track(drawn, 3), drawn)
    assert resample_track(drawn, 5).tolist() == [[0, 0], [0.5, 0], [1, 0], [5.5, 0], [10, 0]]
    assert resample_track(drawn, 5, "length").tolist() == [[0, 0], [2.5, 0], [5, 0], [7.5, 0], [10, 0]]
    assert resample_track(drawn, 5, "length", "ease_in")[:, 0].tolist() == [0, 0.625, 2.5, 5.625, 10]
    corner = resample_track(track((0, 0), (4, 0), (4, 4)), 5, "length")
    assert corner.tolist() == [[0, 0], [2, 0], [4, 0], [4, 2], [4, 4]]
    for resting in (track((3, 4)), track((3, 4), (3, 4))):
        assert resample_track(resting, 4, "length").tolist() == [[3, 4]] * 4
    with pytest.raises(UserError, match="index, length"):
        resample_track(drawn, 3, "time")


# --- ComfyUI's own tracks -------------------------------------------------------------------------------------


def native(frames: int, *tracks, visible=None):
    return {"track_path": torch.stack(tracks, dim=1)[:frames].float(), "track_visibility": visible}


def test_native_tracks_are_tracks():
    right, down = track((10, 10), (14, 10), (18, 10)), track((40, 20), (40, 26), (40, 32))
    for visible in (None, torch.ones(3, 2), torch.ones(3, 1, dtype=torch.bool), torch.ones(1, 1)):
        read = native_to_tracks(native(3, right, down, visible=visible))
        assert torch.equal(tracks_field(read, 3, SIZE, radius=6), tracks_field([right, down], 3, SIZE, radius=6))
    several = native_to_tracks(native(3, right, down))  # of more or fewer frames than the video
    assert torch.allclose(tracks_field(several, 5, SIZE), tracks_field([right, down], 5, SIZE))


def test_a_hidden_point_moves_nothing():
    moving = track(*((10 + 4 * i, 10) for i in range(6)))
    seen = torch.tensor([1, 1, 0, 1, 1, 1])[:, None]
    field = tracks_field(native_to_tracks(native(6, moving, visible=seen)), 6, SIZE, radius=6)
    shown = tracks_field([moving], 6, SIZE, radius=6)
    for frame in range(6):
        hidden = frame in (2, 3)  # in the frame itself, or in the one that its step begins in
        assert torch.equal(field[0, :, frame], torch.zeros(2, *SIZE) if hidden else shown[0, :, frame]), frame
    still = track((12, 10))
    both = native_to_tracks({"track_path": torch.stack([moving, still.expand(6, 2)], dim=1)})
    hiding = [both[0], Track(both[1].points, visible=torch.zeros(6, dtype=torch.bool))]
    assert torch.equal(tracks_field(hiding, 6, SIZE, radius=6), shown)
    # Over fewer frames, a point between a visible and a hidden point is hidden.
    native_tracks = tracks_to_native(native_to_tracks(native(6, moving, visible=seen)), 5, SIZE)
    assert native_tracks["track_visibility"][:, 0].tolist() == [True, False, False, True, True]


def test_tracks_become_native_in_pixels_of_the_video():
    boxed = Track(track((0, 0), (40, 20)), Rectangle(20, 10, 40, 30))
    native_tracks = tracks_to_native([Track(track((10, 20), (90, 60))), boxed], 3, (50, 50), (100, 200))
    assert native_tracks["track_path"].dtype == torch.float32 and native_tracks["track_visibility"].dtype == torch.bool
    assert native_tracks["track_path"][:, 0].tolist() == [[-20, 10], [0, 20], [20, 30]]
    assert native_tracks["track_path"][:, 1].tolist() == [[-10, 10], [0, 15], [10, 20]]  # its centre, from (30, 20) on
    assert native_tracks["track_visibility"].shape == (3, 2) and native_tracks["track_visibility"].all()
    again = native_to_tracks(native_tracks)
    assert torch.allclose(torch.stack([track.points for track in again], dim=1).float(), native_tracks["track_path"])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "track_path is NoneType"),
        ({"track_path": torch.zeros(1, 4, 2, 2)}, r"track_path is \(1, 4, 2, 2\)"),
        ({"track_path": torch.zeros(4, 0, 2)}, "track_path is"),
        ({"track_path": torch.full((4, 2, 2), math.nan)}, "not finite.*at frame 1 of track 1"),
        ({"track_path": torch.zeros(4, 2, 2), "track_visibility": torch.ones(3, 2)}, r"\(3, 2\). Expected .*\(4, 2\)"),
        ({"track_path": torch.zeros(4, 2, 2), "track_visibility": torch.ones(4)}, "track_visibility is"),
        ({"track_path": torch.zeros(4, 2, 2), "track_visibility": torch.zeros(4, 2)}, "No point is visible"),
    ],
)
def test_what_is_not_a_native_track_is_reported(given, says):
    with pytest.raises(UserError, match=f"^The socket.*{says}"):
        native_to_tracks(given, "The socket 'native_tracks'")
