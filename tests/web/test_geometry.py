"""The geometry of the tracks' editor, run by Node.js, compared with Python's results for the same text."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from vc_core.errors import UserError
from vc_core.extract.drawing import place
from vc_core.extract.motion.tracks import parse_tracks

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def geometry(tmp_path_factory):
    """Call functions of the page's geometry: `geometry([name, ...], ...)` returns the list of their results."""
    if shutil.which("node") is None:
        pytest.skip("no Node.js found, which runs the page's scripts: install it, or run without tests/web")
    module = tmp_path_factory.mktemp("geometry") / "geometry.mjs"  # Node.js recognizes modules by this suffix
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
    '{"box": {"x": 1, "y": 2, "width": 3.5, "height": 4}, "path": [{"x": 5, "y": 6}, {"x": 7, "y": 8}]}',
    '[[[1, 2]], {"box": [1, 2, 3, 4], "path": [[5, 6]]}]',
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
    '{"box": [1, 2, 3, 4]}',
    '{"box": [1, 2, 3], "path": [[5, 6]]}',
    '[{"box": [1, 2, 3, 0], "path": [[5, 6]]}]',
    '[{"box": null, "path": [[5, 6]]}]',
)


def track(*points, box=None):
    """Return a track in the editor's form."""
    return {"points": [list(point) for point in points], "box": box}


def as_editor(tracks):
    """Return tracks that Python has read in the editor's form."""
    sides = [item.box and (item.box.left, item.box.top, item.box.right, item.box.bottom) for item in tracks]
    boxes = [side and [side[0], side[1], side[2] - side[0], side[3] - side[1]] for side in sides]
    return [track(*item.points.tolist(), box=box) for item, box in zip(tracks, boxes, strict=True)]


def test_the_editor_reads_what_python_reads(geometry):
    tracks = geometry(*(["parseTracks", text] for text in READABLE))
    assert tracks == [as_editor(parse_tracks(text)) for text in READABLE]


def test_the_editor_shows_nothing_that_python_refuses(geometry):
    for text in UNREADABLE:
        with pytest.raises(UserError):
            parse_tracks(text)
    assert [bool(tracks) for tracks in geometry(*(["parseTracks", text] for text in UNREADABLE))] == [False] * len(
        UNREADABLE
    )


def test_python_reads_what_the_editor_writes(geometry):
    single, two = [track((1.26, 2), (3, 4.04))], [track((0, 0)), track((511.95, 7), (8, 9), (10, 11))]
    boxed = [track((25.04, 40), (60, 40), box=[10, 20, 30, 40.06])]
    texts = geometry(*(["formatTracks", tracks] for tracks in (single, two, boxed)))
    assert texts[0] == '[{"x": 1.3, "y": 2}, {"x": 3, "y": 4}]'
    assert texts[2] == (
        '[{"box": {"x": 10, "y": 20, "width": 30, "height": 40.1}, "path": [{"x": 25, "y": 40}, {"x": 60, "y": 40}]}]'
    )
    rounded = [[track((1.3, 2), (3, 4))], [track((0, 0)), track((512, 7), (8, 9), (10, 11))]]
    assert [as_editor(parse_tracks(text)) for text in texts[:2]] == rounded
    read = parse_tracks(texts[2])[0]
    assert (read.box.right, read.box.bottom) == (40, 60.1)
    assert geometry(*(["parseTracks", text] for text in texts[:2])) == rounded


def test_the_visible_area_of_the_canvas_is_the_same_in_python(geometry):
    for canvas, video in (((512, 512), (256, 128)), ((640, 360), (64, 64)), ((64, 64), (64, 64))):
        ((left, top, width, height),) = geometry(["visibleArea", canvas, video])
        placed = place(canvas[::-1], video[::-1])
        assert -placed.left / placed.scale == pytest.approx(left)
        assert -placed.top / placed.scale == pytest.approx(top)
        assert (video[0] / placed.scale, video[1] / placed.scale) == pytest.approx((width, height))


def test_a_click_finds_the_nearest_point_or_line(geometry):
    tracks = [track((0, 0), (100, 0)), track((3, 0))]
    near, other, far, line, end = geometry(
        ["nearestPoint", tracks, [1, 1], 9, 0],
        ["nearestPoint", tracks, [3, 1], 9, 0],
        ["nearestPoint", tracks, [50, 50], 9, 0],
        ["insertionIndex", tracks[0]["points"], [50, 5], 9],
        ["insertionIndex", tracks[0]["points"], [50, 50], 9],
    )
    assert near == {"track": 0, "point": 0} and other == {"track": 1, "point": 0} and far is None
    assert (line, end) == (1, 2)


def test_editing_leaves_the_other_tracks_alone(geometry):
    first, other = track((0, 0), (100, 0)), track((3, 3))
    tracks = [first, other]
    longer, more, moved, shorter, fewer = geometry(
        ["withPoint", tracks, 0, [200, 0], 9],
        ["withPoint", tracks, 2, [7, 7], 9],
        ["withMoved", tracks, {"track": 0, "point": 1}, [5, 5]],
        ["withoutPoint", tracks, {"track": 0, "point": 0}],
        ["withoutPoint", tracks, {"track": 1, "point": 0}],
    )
    assert longer == {"tracks": [track((0, 0), (100, 0), (200, 0)), other], "track": 0, "point": 2}
    assert more == {"tracks": [*tracks, track((7, 7))], "track": 2, "point": 0}
    assert moved == [track((0, 0), (5, 5)), other]
    assert shorter == [track((100, 0)), other]
    assert fewer == [first]


def test_a_box_is_drawn_and_moves_with_its_first_point(geometry):
    (box,) = geometry(["boxBetween", [40, 10], [10, 30]])
    assert box == [10, 10, 30, 20]
    (tracks,) = geometry(["withBox", [track((0, 0))], box])
    assert tracks == [track((0, 0)), track((25, 20), box=box)]
    (extended,) = geometry(["withPoint", tracks, 1, [60, 20], 9])
    assert extended["tracks"][1] == track((25, 20), (60, 20), box=box)
    both, last = geometry(
        ["withMoved", extended["tracks"], {"track": 1, "point": 0}, [30, 30]],
        ["withMoved", extended["tracks"], {"track": 1, "point": 1}, [60, 50]],
    )
    assert both[1] == track((30, 30), (60, 20), box=[15, 20, 30, 20])
    assert last[1] == track((25, 20), (60, 50), box=box)


def test_on_another_canvas_tracks_keep_their_position(geometry):
    tracks = [track((10, 20), (30, 40)), track((5, 5), box=[0, 0, 10, 10])]
    (wide,) = geometry(["onCanvas", tracks, [100, 100], [200, 50]])
    assert wide == [track((20, 10), (60, 20)), track((10, 2.5), box=[0, 0, 20, 5])]
    shapes = geometry(["sameShape", [854, 480], [427, 240]], ["sameShape", [854, 480], [512, 512]])
    assert shapes == [True, False]


def test_a_canvas_without_a_size_gets_one_that_fits_its_tracks(geometry):
    sizes = geometry(
        ["likelySize", [track((16, 32), (48, 32))], [0, 0]],
        ["likelySize", [track((16, 32), (200, 32))], [0, 0]],
        ["likelySize", [track((16, 32), box=[0, 0, 300, 20])], [0, 0]],
        ["likelySize", [track((16, 32))], [320, 192]],
        ["likelySize", [], [0, 0]],
    )
    assert sizes == [[64, 64], [256, 256], [512, 512], [320, 192], [64, 64]]
