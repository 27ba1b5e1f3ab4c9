"""The geometry of the tracks' editor, run by Node.js, against what Python makes of the same text."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from vc_core.errors import UserError
from vc_core.extract.drawing import place
from vc_core.extract.tracks import parse_tracks

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def geometry(tmp_path_factory):
    """Calls functions of the page's geometry: `geometry([name, ...], ...)` gives a list of what they returned."""
    if shutil.which("node") is None:
        pytest.skip("no Node.js found, which runs the page's scripts: install it, or run without tests/web")
    module = tmp_path_factory.mktemp("geometry") / "geometry.mjs"  # by this ending Node.js knows what it is
    module.write_bytes((HERE.parents[1] / "web" / "geometry.js").read_bytes())

    def call(*calls):
        run = subprocess.run(
            ["node", HERE / "geometry.mjs", module], input=json.dumps(calls), capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr
        return json.loads(run.stdout)

    return call


READABLE = (
    '[{"x": 1, "y": 2}, {"x": 3.5, "y": 4}]',
    "[{'x': 1, 'y': 2}]",
    "[[1, 2], [3, 4], [5, 6]]",
    "[[[1, 2], [3, 4]], [[5, 6]]]",
    '[[{"x": 1, "y": 2}], [{"x": 3, "y": 4, "t": 0}]]',
    '["[[1, 2], [3, 4]]", "[{\\"x\\": 5, \\"y\\": 6}]"]',
)
UNREADABLE = (
    "",
    "[]",
    "nonsense",
    "{}",
    "3",
    '[{"x": 1}]',
    '[{"x": "1", "y": 2}]',
    "[[]]",
    "[[1, 2, 3]]",
    "[[[1, 2]], []]",
)


def test_the_editor_reads_what_python_reads(geometry):
    seen = geometry(*(["parseTracks", text] for text in READABLE))
    assert seen == [[track.tolist() for track in parse_tracks(text)] for text in READABLE]


def test_the_editor_shows_nothing_that_python_refuses(geometry):
    for text in UNREADABLE:
        with pytest.raises(UserError):
            parse_tracks(text)
    assert [bool(tracks) for tracks in geometry(*(["parseTracks", text] for text in UNREADABLE))] == [False] * 10


def test_python_reads_what_the_editor_writes(geometry):
    drawn = [[[[1.26, 2], [3, 4.04]]], [[[0, 0]], [[511.95, 7], [8, 9], [10, 11]]]]
    texts = geometry(*(["formatTracks", tracks] for tracks in drawn))
    assert texts[0] == '[{"x": 1.3, "y": 2}, {"x": 3, "y": 4}]'
    read = [[track.tolist() for track in parse_tracks(text)] for text in texts]
    assert read == [[[[1.3, 2], [3, 4]]], [[[0, 0]], [[512, 7], [8, 9], [10, 11]]]]
    assert geometry(["parseTracks", texts[1]]) == [read[1]]


def test_what_the_video_shows_of_the_canvas_is_what_python_takes(geometry):
    for canvas, video in (((512, 512), (256, 128)), ((640, 360), (64, 64)), ((64, 64), (64, 64))):
        ((left, top, width, height),) = geometry(["visibleArea", canvas, video])
        placed = place(canvas[::-1], video[::-1])
        assert -placed.left / placed.scale == pytest.approx(left)
        assert -placed.top / placed.scale == pytest.approx(top)
        assert (video[0] / placed.scale, video[1] / placed.scale) == pytest.approx((width, height))


def test_a_click_finds_the_point_or_the_line_that_it_means(geometry):
    tracks = [[[0, 0], [100, 0]], [[3, 0]]]
    near, other, far, line, end = geometry(
        ["nearestPoint", tracks, [1, 1], 9, 0],
        ["nearestPoint", tracks, [3, 1], 9, 0],
        ["nearestPoint", tracks, [50, 50], 9, 0],
        ["insertionIndex", tracks[0], [50, 5], 9],
        ["insertionIndex", tracks[0], [50, 50], 9],
    )
    assert near == {"track": 0, "point": 0} and other == {"track": 1, "point": 0} and far is None
    assert (line, end) == (1, 2)


def test_editing_leaves_the_other_tracks_alone(geometry):
    tracks = [[[0, 0], [100, 0]], [[3, 3]]]
    added, begun, moved, removed, gone = geometry(
        ["withPoint", tracks, 0, [200, 0], 9],
        ["withPoint", tracks, 2, [7, 7], 9],
        ["withMoved", tracks, {"track": 0, "point": 1}, [5, 5]],
        ["withoutPoint", tracks, {"track": 0, "point": 0}],
        ["withoutPoint", tracks, {"track": 1, "point": 0}],
    )
    assert added == {"tracks": [[[0, 0], [100, 0], [200, 0]], [[3, 3]]], "track": 0, "point": 2}
    assert begun == {"tracks": [*tracks, [[7, 7]]], "track": 2, "point": 0}
    assert moved == [[[0, 0], [5, 5]], [[3, 3]]]
    assert removed == [[[100, 0]], [[3, 3]]]
    assert gone == [[[0, 0], [100, 0]]]


def test_a_canvas_without_a_size_is_as_large_as_its_points_make_likely(geometry):
    sizes = geometry(
        ["likelySize", [[[16, 32], [48, 32]]], [0, 0]],
        ["likelySize", [[[16, 32], [200, 32]]], [0, 0]],
        ["likelySize", [[[16, 32]]], [320, 192]],
        ["likelySize", [], [0, 0]],
    )
    assert sizes == [[64, 64], [256, 256], [320, 192], [64, 64]]
