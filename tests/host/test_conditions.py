"""Conditions on the sampler: strength 0 is the same as not connected; sizes and lengths are fitted."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.host.scene import error, saved_latent
from vc_core.checkpoint.reading import BUNDLED, read_checkpoint
from vc_core.conditions import condition_size

SOURCES = {
    "motion": ("VCCameraMotion", lambda clip: {"zoom": 2.0}),
    "depth": ("DepthSequence", lambda clip: {"video": clip[2], "input": "depth maps, near is bright"}),
    "sketch": ("VCSketchSequence", lambda clip: {"video": clip[1]}),
    "mask": ("VCMaskSequence", lambda clip: {"video": clip[1], "mask": clip[3]}),
    "single_image": ("VCSingleImage", lambda clip: {"image": clip[1]}),
    "single_sketch": ("VCSingleSketch", lambda clip: {"image": clip[2]}),
}


def side_of(name, video=64):
    """Return the side in pixels of a condition of a square video for the bundled checkpoint."""
    scale = read_checkpoint(BUNDLED).config.extraction.condition_scale
    return condition_size(name, (video, video), scale)[0]


TRIM = "Video Slice"
"""The node with which newer ComfyUIs trim a VIDEO."""


def source(scene, name, **inputs):
    """Add the node that computes a condition from the example clip."""
    kind, sockets = SOURCES[name]
    return scene.add(kind, **sockets(scene.add("VCExampleClip")), **inputs)


@pytest.mark.parametrize("name", SOURCES)
def test_strength_0_and_an_empty_schedule_equal_no_condition_to_the_bit(scene, name):
    unplugged, plugged, weak, never = scene.latents(
        *(
            scene.sample(scene.encode(**inputs), steps=2)
            for inputs in (
                {},
                {name: source(scene, name)},
                {name: source(scene, name, strength=0.0)},
                {name: source(scene, name, end_percent=0.0)},
            )
        )
    )
    assert error(plugged, unplugged) > 1e-3
    assert torch.equal(weak, unplugged)
    assert torch.equal(never, unplugged)


def test_strength_0_needs_no_valid_input(scene):
    unplugged, off = scene.latents(
        scene.sample(scene.encode()),
        scene.sample(
            scene.encode(
                motion=scene.add("VCMotionFromTracks", tracks="[]", strength=0.0),
                depth=scene.add("DepthSequence", video=scene.add("VCExampleClip"), strength=0.0),  # without a network
            )
        ),
    )
    assert torch.equal(off, unplugged)


def test_an_added_motion_of_strength_0_is_not_added(scene):
    motions = [{}, *({"add_to": scene.add("VCCameraMotion", zoom=2.0, strength=s)} for s in (1.0, 0.0))]
    alone, both, off = scene.latents(
        *(scene.sample(scene.encode(motion=scene.add("VCCameraMotion", pan_right=0.3, **each))) for each in motions)
    )
    assert error(both, alone) > 1e-3
    assert torch.equal(off, alone)


def test_conditions_of_two_encoders_add_up(scene):
    motion, image = source(scene, "motion"), source(scene, "single_image")
    first = scene.encode(motion=motion)
    second = scene.encode(positive=first[0], negative=first[1], single_image=image)
    together = scene.encode(motion=motion, single_image=image)
    assert torch.equal(*scene.latents(*(scene.sample(stc) for stc in (second, together))))


def test_conditions_are_fitted_to_the_latent_that_is_sampled(scene):
    """As in a second pass at twice the size, where motion vectors are twice as long."""
    motion, image = source(scene, "motion"), source(scene, "single_image")
    small, large = (
        scene.encode(motion=motion, single_image=image, width=side, height=side, frames=8) for side in (64, 128)
    )
    saved = [scene.add("SaveLatent", samples=s) for s in (scene.sample(small, latent=large[2]), scene.sample(large))]
    result = scene.host.run(scene.graph)
    assert torch.equal(*(saved_latent(result, node) for node in saved))
    assert "motion, single_image: resampled to the latent's size, 128x128." in result.notes


def test_the_motion_of_fewer_images_is_slower_and_even(scene):
    clip = scene.add("VCExampleClip", frames=9)
    scene.add("SaveImage", images=scene.add("MotionVectorExtract", video=clip[1])[1], filename_prefix="few")
    result = scene.host.run(scene.graph)
    assert "The motion of 9 images was spread over 16 frames." in result.notes
    pictures = [torch.from_numpy(np.array(Image.open(file))).float() for file in result.files]
    moving = torch.stack([(picture.amax(-1) - picture.amin(-1)).mean() for picture in pictures])[1:]  # colourful
    assert len(moving) == 15 and moving.min() > 0.5 * moving.max()


def test_a_style_of_strength_0_equals_no_style_to_the_bit(scene):
    image = scene.add("VCExampleClip", frames=1)[1]

    def styled(**inputs):
        sides = {"positive": scene.positive, "negative": scene.negative}
        style = scene.add("StyleEmbed", **sides, clip_vision=scene.loader[2], image=image, **inputs)
        return scene.sample(scene.encode(positive=style[0], negative=style[1]), steps=2)

    unplugged, plugged, weak, never = scene.latents(
        scene.sample(scene.encode(), steps=2), styled(), styled(strength=0.0), styled(end_percent=0.0)
    )
    assert error(plugged, unplugged) > 1e-3
    assert torch.equal(weak, unplugged)
    assert torch.equal(never, unplugged)


def test_a_style_may_come_from_the_stock_encoder(scene):
    image, sides = scene.add("VCExampleClip", frames=1)[1], {"positive": scene.positive, "negative": scene.negative}
    encoded = scene.add("CLIPVisionEncode", clip_vision=scene.loader[2], image=image, crop="center")
    styles = [
        scene.add("StyleEmbed", **sides, clip_vision=scene.loader[2], image=image),
        scene.add("StyleEmbed", **sides, clip_vision_output=encoded),
    ]
    ours, stock = scene.latents(*(scene.sample(scene.encode(positive=s[0], negative=s[1]), steps=2) for s in styles))
    assert torch.equal(ours, stock)


def test_conditions_of_another_video_are_fitted_and_a_note_says_so(scene):
    """Conditions of 8 frames at 64 x 64 for a video of 12 frames at 96 x 64."""
    conditions = {name: source(scene, name, frames=8) for name in ("motion", "depth", "sketch", "mask")}
    stc = scene.encode(**conditions, frames=12, width=96, height=64)
    saved = scene.add("SaveLatent", samples=scene.sample(stc, steps=1))
    result = scene.host.run(scene.graph)
    assert saved_latent(result, saved).shape == (1, 4, 12, 8, 12)
    notes = "\n".join(result.notes)
    for name in conditions:
        assert f"{name}: resampled from 8 x" in notes


def test_the_length_and_size_of_the_conditions_are_the_video_s(scene):
    motion = source(scene, "motion", frames=8, width=80)
    (latent,) = scene.latents(scene.sample(scene.encode(motion=motion), steps=1))
    assert latent.shape == (1, 4, 8, 8, 10)


@pytest.mark.parametrize("name", SOURCES)
def test_each_condition_shows_what_the_network_sees(scene, name):
    scene.add("SaveImage", images=source(scene, name)[1], filename_prefix="seen")
    files = scene.host.run(scene.graph).files
    assert len(files) == (1 if name.startswith("single") else 16)
    with Image.open(files[-1]) as picture:
        low, high = picture.convert("L").getextrema()
        assert high - low > 20  # not blank


def test_only_the_part_of_a_trimmed_video_is_used(scene):
    from vc_core.demo import draw_clip
    from vc_core.video import write_video

    if TRIM not in scene.host.nodes:
        pytest.skip("this ComfyUI trims no videos")
    write_video(scene.host.folder / "input" / "long.mp4", draw_clip(), 8)
    full = scene.add("LoadVideo", file="long.mp4")
    part = scene.add(TRIM, video=full, start_time=1.5, duration=0.5)
    images = scene.add("GetVideoComponents", video=part)
    sketches = [
        scene.add("SaveImage", filename_prefix=name, images=scene.add("VCSketchSequence", video=video, **options)[1])
        for name, video, options in (
            ("part", part, {"frames": 4}),
            ("images", images, {"frames": 4}),
            ("whole", full, {"frames": 4, "frame_rate": 8.0}),
        )
    ]
    result = scene.host.run(scene.graph)
    of_part, of_images, of_full = (
        np.stack([np.array(Image.open(file)) for file in result.files_of(node)]) for node in sketches
    )
    assert of_part.shape[0] == 4
    assert (of_part == of_images).all()
    assert (of_part != of_full).any()


def preview_text(scene, output):
    """Return an output as text, from ComfyUI's Preview Any, and the run's result."""
    shown = scene.add("PreviewAny", source=output)
    result = scene.host.run(scene.graph)
    return result.outputs[shown]["text"][0], result


@pytest.mark.parametrize(
    "inputs, expected",
    [
        (lambda scene, clip: {}, 8.0),  # as the checkpoint was trained
        (lambda scene, clip: {"sketch": scene.add("VCSketchSequence", video=clip[1])}, 8.0),  # images have no rate
        (lambda scene, clip: {"sketch": scene.add("VCSketchSequence", video=clip[0], frame_rate=6.0)}, 6.0),
        (lambda scene, clip: {"motion": scene.add("MotionVectorExtract", video=clip[0])}, 4.0),  # the released rule
        (lambda scene, clip: {"motion": scene.add("VCCameraMotion", zoom=1.2, add_to=scene.add(
            "MotionVectorExtract", video=clip[0], frame_rate=6.0))}, 6.0),
        (lambda scene, clip: {"sketch": scene.add("VCSketchSequence", video=clip[0], frames=9, frame_rate=4.0),
                              "frames": 17}, 8.0),  # spread over as many seconds
    ],
)  # fmt: skip
def test_fps_plays_the_video_as_fast_as_the_one_that_its_conditions_are_from(scene, inputs, expected):
    clip = scene.add("VCExampleClip", frames=40, size=64)  # 8 frames per second
    text, result = preview_text(scene, scene.encode(**inputs(scene, clip))[3])
    assert float(text) == expected
    assert not [note for note in result.notes if "fps" in note]


def test_fps_is_that_of_the_first_condition_if_they_differ_and_a_note_says_so(scene):
    clip = scene.add("VCExampleClip", frames=40, size=64)
    sketch, motion = (
        scene.add(kind, video=clip[0], frame_rate=rate)
        for kind, rate in (("VCSketchSequence", 8.0), ("MotionVectorExtract", 4.0))
    )
    text, result = preview_text(scene, scene.encode(sketch=sketch, motion=motion)[3])
    assert float(text) == 4.0
    assert "The conditions have different frame rates (motion 4, sketch 8). fps is the rate of motion." in result.notes


def test_a_strength_far_above_that_of_the_training_is_noted(scene):
    stc = scene.encode(motion=scene.add("VCCameraMotion", pan_right=0.2, strength=5.0))
    scene.add("SaveLatent", samples=scene.sample(stc))
    notes = " ".join(scene.host.run(scene.graph).notes)
    assert "The strength of 'motion' is 5. Networks are trained with 1" in notes
