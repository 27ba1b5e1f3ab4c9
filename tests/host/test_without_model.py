"""Condition nodes without a model: STCEncode draws what they make for its own, exactly as if it were connected."""

import pytest
import torch

from tests.host.scene import saved_latent
from tests.host.test_conditions import SOURCES, side_of, source


@pytest.mark.parametrize("name", SOURCES)
def test_a_condition_without_a_model_is_drawn_for_the_one_that_samples(scene, name):
    made = [source(scene, name, **model) for model in ({}, {"model": None})]
    saved = [scene.add("SaveLatent", samples=scene.sample(scene.encode(**{name: one}), steps=1)) for one in made]
    result = scene.host.run(scene.graph)
    assert torch.equal(*(saved_latent(result, node) for node in saved))
    side, frames = side_of(name), 1 if name.startswith("single") else 16
    drawn = f"{name}: drawn anew for this model, {frames} x {side}x{side} (frames x width x height)."
    assert result.notes.count(drawn) == 1


def test_its_length_and_size_are_the_video_s_and_nothing_is_cropped_twice(scene):
    """From a wide source, for a video that only STCEncode knows: a square was never cut out of it."""
    clip = scene.add("VCExampleClip", frames=40)
    wide = scene.add("ImageScale", image=clip[1], upscale_method="area", width=256, height=128, crop="center")
    video = scene.add("CreateVideo", images=wide, fps=8.0)

    def encoded(model, **size):
        motion = scene.add("MotionVectorExtract", video=video, **model, **size)
        sketch = scene.add("VCSketchSequence", video=video, **model, **size)
        return scene.encode(motion=motion, sketch=sketch, frames=8, width=96, height=48)

    stc = encoded({}, frames=8, width=96, height=48), encoded({"model": None})
    latents = scene.latents(*(scene.sample(one, steps=1) for one in stc))
    assert latents[0].shape == (1, 4, 8, 6, 12) and torch.equal(*latents)


def test_what_is_set_on_its_node_is_the_video_s(scene):
    motion = source(scene, "motion", model=None, frames=8, width=80)
    image = source(scene, "single_image", model=None)
    (latent,) = scene.latents(scene.sample(scene.encode(motion=motion, single_image=image), steps=1))
    assert latent.shape == (1, 4, 8, 8, 10)  # the height as the checkpoint was trained


def test_motions_add_up_with_and_without_a_model(scene):
    ways = [({}, {}), ({"model": None}, {}), ({}, {"model": None}), ({"model": None}, {"model": None})]
    track = '[{"x": 128, "y": 256}, {"x": 384, "y": 256}]'
    motions = [
        scene.add("VCMotionFromTracks", tracks=track, add_to=scene.add("VCCameraMotion", zoom=1.3, **other), **own)
        for own, other in ways
    ]
    saved = [scene.add("SaveLatent", samples=scene.sample(scene.encode(motion=one), steps=1)) for one in motions]
    result = scene.host.run(scene.graph)
    first, *others = (saved_latent(result, node) for node in saved)
    assert all(torch.equal(other, first) for other in others)
    assert sum("drawn anew" in note for note in result.notes) == 1  # a sum is made for what one of the two is made for


def test_another_prompt_draws_nothing_again(scene):
    motion = scene.add("MotionVectorExtract", video=scene.add("VCExampleClip", frames=40)[0], model=None)
    encoders = [scene.encode(motion=motion), scene.encode(motion=motion, positive=scene.text("a blue square"))]
    for stc in encoders:
        scene.add("SaveLatent", samples=stc[2])
    events = scene.host.run(scene.graph).events
    busy = {data["node"] for kind, data in events if kind == "progress"}
    assert motion in busy and len(busy & set(encoders)) == 1


def test_motion_of_one_checkpoint_still_says_where_it_does_not_belong(scene):
    """What was made for a model is not drawn for another one: it is resampled, as ever."""
    made = source(scene, "sketch", width=128, height=128)
    scene.add("SaveLatent", samples=scene.encode(sketch=made, width=64, height=64)[2])
    notes = scene.host.run(scene.graph).notes
    large, small = side_of("sketch", 128), side_of("sketch")
    assert f"sketch: resampled from 16 x {large}x{large} to 16 x {small}x{small} (frames x width x height)." in notes
