"""Tracks drawn on an image move what is under them, whatever its shape; TRACKS of ComfyUI are read and written."""

import json

import numpy as np
import pytest
from PIL import Image

SHAPES = {"wide": (854, 480), "tall": (480, 854), "square": (512, 512)}
OBJECT = (0.58, 0.41)  # fractions of the image's width and height


def draw_picture(path, size: tuple[int, int]) -> tuple[float, float]:
    """Write a grey image with a blue disc, and return the disc's position in pixels."""
    (width, height), at = size, tuple(fraction * side for fraction, side in zip(OBJECT, size, strict=True))
    y, x = np.mgrid[:height, :width] + 0.5
    pixels = np.full((height, width, 3), 128, np.uint8)
    pixels[np.hypot(x - at[0], y - at[1]) < min(size) / 16] = (0, 40, 255)
    Image.fromarray(pixels).save(path)
    return at


def frames(result, node) -> list[np.ndarray]:
    return [np.asarray(Image.open(file).convert("RGB")).astype(float) / 255 for file in result.files_of(node)]


def middle(where: np.ndarray) -> np.ndarray:
    """Return the mean position of the true pixels, as fractions of the width and height."""
    assert where.any()
    y, x = np.nonzero(where)
    return np.array([(x.mean() + 0.5) / where.shape[1], (y.mean() + 0.5) / where.shape[0]])


def disc(frame: np.ndarray) -> np.ndarray:
    return middle(frame[..., 2] - frame[..., 0] > 0.5)


def moving(pictures: list[np.ndarray]) -> np.ndarray:
    """Return the position of the second frame's arrows; the first frame has none."""
    return middle(np.abs(pictures[1] - pictures[0]).max(-1) > 0.2)


@pytest.mark.parametrize("video", [(64, 64), (96, 64)])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_under_the_start_of_a_track_moves(host, scene, shape, video):
    width, height = SHAPES[shape]
    x, y = draw_picture(host.folder / "input" / f"{shape}.png", (width, height))
    image = scene.add("LoadImage", image=f"{shape}.png")
    size = dict(zip(("width", "height"), video, strict=True))
    points = [{"x": x, "y": y}, {"x": x + 60, "y": y}]
    canvas = {"canvas_width": width, "canvas_height": height}
    # The same track on another canvas, which is stretched over the connected image.
    stretched = [{"x": point["x"] / width * 512, "y": point["y"] / height * 512} for point in points]
    motions = {
        "drawn on a canvas of its size": {"tracks": json.dumps(points), **canvas},
        "stretched over it": {"tracks": json.dumps(stretched), "image": image},
        "without a size": {"tracks": json.dumps(points), "canvas_width": 0, "canvas_height": 0, "image": image},
    }
    shown = {}
    for name, inputs in motions.items():
        motion = scene.add("VCMotionFromTracks", **inputs, **size)
        shown[name] = scene.add("PreviewImage", images=scene.add("VCMotionPreview", motion=motion, images=image))
    single = scene.add("PreviewImage", images=scene.add("VCSingleImage", image=image, **size)[1])
    result = host.run(scene.graph)
    (first_frame,) = frames(result, single)
    for name, node in shown.items():
        pictures = frames(result, node)
        assert disc(pictures[0]) == pytest.approx(disc(first_frame), abs=0.02), name
        assert moving(pictures) == pytest.approx(disc(first_frame), abs=0.05), name


def test_the_page_receives_the_image_and_the_size_of_the_video(host, scene):
    draw_picture(host.folder / "input" / "background.png", SHAPES["wide"])
    image = scene.add("LoadImage", image="background.png")
    nodes = [scene.add("VCMotionFromTracks", image=image, strength=strength) for strength in (1.0, 0.0)]
    for node in nodes:
        scene.add("PreviewImage", images=node[1])
    first = host.run(scene.graph).outputs
    scene.graph.set(nodes[0], radius=20.0)
    again = host.run(scene.graph).outputs
    for node in nodes:
        assert first[node]["videocomposer_size"] == [[64, 64]]
        assert first[node]["videocomposer_background"] == first[nodes[0]]["videocomposer_background"]
    (background,) = first[nodes[0]]["videocomposer_background"]
    assert again[nodes[0]]["videocomposer_background"] == [background]
    with (
        Image.open(host.folder / "temp" / background["filename"]) as sent,
        Image.open(host.folder / "input" / "background.png") as original,
    ):
        assert np.array_equal(np.asarray(sent), np.asarray(original))


def test_native_tracks_are_written_and_read(host, scene):
    source = scene.add("VCMotionFromTracks", tracks="[[[100, 100], [300, 100]], [[400, 400]]]", radius=80)
    video = {"canvas_width": 0, "canvas_height": 0, "radius": 10}
    reused = scene.add("VCMotionFromTracks", tracks="[]", native_tracks=source[2], **video)
    combined = scene.add("VCMotionFromTracks", tracks="[[50, 50]]", native_tracks=source[2], **video)
    small = scene.add("VCMotionFromTracks", tracks="", native_tracks=source[2], canvas_width=8, canvas_height=8)
    shown = {
        node: scene.add("PreviewImage", images=scene.add("VCMotionPreview", motion=node))
        for node in (source, reused, combined, small)
    }
    result = host.run(scene.graph)
    first, second = (frames(result, shown[node]) for node in (source, reused))
    assert all(np.abs(a - b).max() < 0.05 for a, b in zip(first, second, strict=True))
    assert "Tracks: 1 drawn, 2 from the socket 'native_tracks'." in result.notes
    assert [note for note in result.notes if "start outside the 8x8 canvas" in note]


def test_stock_tracks_are_read(host, scene):
    if "GenerateTracks" not in host.nodes:
        pytest.skip("this ComfyUI has no TRACKS")
    place = {"start_x": 0.25, "start_y": 0.5, "end_x": 0.75, "end_y": 0.5}
    stock = scene.add(
        "GenerateTracks", width=832, height=480, num_frames=81, num_tracks=1, interpolation="linear", **place
    )
    canvas = {"canvas_width": 832, "canvas_height": 480}
    motion = scene.add("VCMotionFromTracks", tracks="[]", native_tracks=stock, **canvas)
    text = '[{"x": 208, "y": 240}, {"x": 624, "y": 240}]'
    same = scene.add("VCMotionFromTracks", tracks=text, **canvas)
    shown = [scene.add("PreviewImage", images=node[1]) for node in (motion, same)]
    # Their node draws our tracks.
    black = scene.add("EmptyImage", width=64, height=64, batch_size=16, color=0)
    theirs = scene.add("PreviewImage", images=scene.add("WanMoveVisualizeTracks", images=black, tracks=motion[2],
                       line_resolution=24, circle_size=3, opacity=1.0, line_width=2))  # fmt: skip
    result = host.run(scene.graph)
    ours, expected = (frames(result, node) for node in shown)
    assert all(np.abs(a - b).max() < 0.05 for a, b in zip(ours, expected, strict=True))
    heights = [middle(frame.max(-1) > 0.5)[1] for frame in frames(result, theirs)]
    assert heights == pytest.approx([0.5] * 16, abs=0.05)
