"""Previews and notes on the nodes: what the network sees, the part of a clip, what a checkpoint knows."""

import numpy as np
import pytest
from PIL import Image

from tests.host.test_conditions import SOURCES, side_of, source


def shown(result, node):
    """Return the temporary image file that the page shows on a node, and whether it is animated."""
    output, (path,) = result.outputs[node], result.files_of(node)
    assert output["images"][0]["type"] == "temp" and path.suffix == ".webp"
    return path, bool(output.get("animated", [False])[0])


@pytest.mark.parametrize("name", SOURCES)
def test_each_condition_node_shows_what_the_network_sees(scene, name):
    node = source(scene, name)
    scene.add("PreviewAny", source=scene.encode(**{name: node})[3])
    path, moves = shown(result := scene.host.run(scene.graph), node)
    assert moves == (not name.startswith("single"))
    with Image.open(path) as picture:
        side = side_of(name) * -(-96 // side_of(name))  # enlarged, because older pages do not enlarge images
        assert picture.size == (side, side)
        assert getattr(picture, "n_frames", 1) > 1 or not moves
        picture.seek(getattr(picture, "n_frames", 1) - 1)
        low, high = picture.convert("L").getextrema()
        assert high - low > 20  # not blank
    again = scene.host.run(scene.graph)  # from the cache: newer versions send nothing, and the page keeps the image
    assert node in again.cached and again.outputs.get(node, result.outputs[node]) == result.outputs[node]
    assert not result.files  # the output folder stays empty


def test_large_and_long_conditions_are_shown_small_and_at_their_speed(scene):
    clip = scene.add("VCExampleClip", frames=130)
    size = {"model": None, "frames": 130, "width": 256, "height": 128}  # without a model at the released 384 x 192
    node = scene.add("VCSketchSequence", video=clip[0], frame_rate=8.0, method="edges", **size)
    scene.add("PreviewAny", source=node[1])
    with Image.open(shown(scene.host.run(scene.graph), node)[0]) as picture:
        assert picture.size == (256, 128) and picture.n_frames <= 64
        lengths = []
        for number in range(picture.n_frames):
            picture.seek(number)
            picture.load()
            lengths.append(picture.info["duration"])
    assert sum(lengths) == pytest.approx(130 / 8 * 1000, rel=0.01)


@pytest.mark.parametrize("style", ["arrows", "colours"])
def test_motion_preview_shows_itself(scene, style):
    node = scene.add("VCMotionPreview", motion=scene.add("VCCameraMotion", pan_right=0.3), style=style)
    scene.add("SaveImage", images=node, filename_prefix="arrows")
    assert shown(scene.host.run(scene.graph), node)[1]


def test_a_condition_of_strength_0_shows_a_blank_image(scene):
    node = source(scene, "motion", strength=0.0)
    scene.add("PreviewAny", source=scene.encode(motion=node)[3])
    path, moves = shown(scene.host.run(scene.graph), node)
    with Image.open(path) as picture:
        assert not moves and picture.convert("L").getextrema()[1] == 0


@pytest.mark.parametrize("kind", ["MotionVectorExtract", "DepthSequence", "VCSketchSequence", "VCMaskSequence"])
def test_each_node_says_which_part_of_the_clip_it_used(scene, kind):
    clip = scene.add("VCExampleClip", frames=80, size=64)
    images, mask = clip[2 if kind == "DepthSequence" else 1], clip[3]
    extra = {"DepthSequence": {"input": "depth maps, near is bright"}, "VCMaskSequence": {"mask": mask}}.get(kind, {})
    video = scene.add("CreateVideo", images=images, fps=8.0)  # 10 seconds
    plans = {
        "Uses 0.00 s to 3.75 s of the clip, 4 frames per second.": {},
        "Uses 1.50 s to 4.50 s of the clip, 5 frames per second.": {"start_time": 1.5, "frame_rate": 5.0},
        "Uses 2.00 s to 5.00 s of the clip, 1 frame per second.": {"start_time": 2.0, "frame_rate": 1.0, "frames": 4},
        "Uses the frame at 2.00 s of the clip.": {"start_time": 2.0, "frame_rate": 1.0, "frames": 1},
    }
    for plan in plans.values():
        node = scene.add(kind, video=video, **extra, **plan)
        scene.add("SaveImage", images=node[1], filename_prefix="seconds")
    notes = scene.host.run(scene.graph).notes
    assert not set(plans) - set(notes)
    of_images = scene.add(kind, video=images, **extra)
    scene.add("SaveImage", images=of_images[1], filename_prefix="seconds")
    result = scene.host.run(scene.graph)
    texts = [text for sort, (node, text) in ((k, d) for k, d in result.events if k == "text") if node == of_images]
    first, *others = texts[0].splitlines()
    assert len(texts) == 1 and first == "80 frames were spread over 16."
    assert len(others) == (kind == "VCMaskSequence") and all("of the frame area is repainted" in n for n in others)


def test_a_note_says_if_a_mask_paints_nothing_or_has_no_white(scene):
    clip = scene.add("VCExampleClip", frames=16, size=64)
    for value in (0.0, 1.0):
        mask = scene.add("SolidMask", value=value, width=64, height=64)
        scene.add("SaveImage", images=scene.add("VCMaskSequence", video=clip[1], mask=mask)[1], filename_prefix="mask")
    labels = np.zeros((64, 64), np.uint8)
    labels[:, 32:] = 1
    Image.fromarray(labels).convert("RGB").save(scene.host.folder / "input" / "labels.png")
    mask = scene.add("LoadImageMask", image="labels.png", channel="red")
    scene.add("SaveImage", images=scene.add("VCMaskSequence", video=clip[1], mask=mask)[1], filename_prefix="mask")
    notes = " ".join(scene.host.run(scene.graph).notes)
    for words in (
        "nothing is repainted",
        "the entire frame is repainted",
        "50 percent of the frame area is repainted",
    ):
        assert words in notes


def test_the_loader_says_what_the_bundled_checkpoint_knows(scene):
    scene.add("SaveLatent", samples=scene.encode(model=scene.add("VCCheckpointLoader", weight_dtype="bf16"))[2])
    (note,) = [note for note in scene.host.run(scene.graph).notes if note.startswith("This checkpoint")]
    assert (
        "only knows simple drawn shapes at 64x64" in note
        and "https://www.modelscope.cn/models/damo/VideoComposer" in note
    )
