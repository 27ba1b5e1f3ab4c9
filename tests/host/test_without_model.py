"""Condition nodes without a model: STCEncode computes their conditions for its own model, as if it were connected."""

import pytest
import torch

from tests.host.scene import saved_latent
from tests.host.test_conditions import SOURCES, side_of, source


@pytest.mark.parametrize("name", SOURCES)
def test_a_condition_without_a_model_is_computed_for_the_one_that_samples(scene, name):
    nodes = [source(scene, name, **model) for model in ({}, {"model": None})]
    saved = [scene.add("SaveLatent", samples=scene.sample(scene.encode(**{name: node}), steps=1)) for node in nodes]
    result = scene.host.run(scene.graph)
    assert torch.equal(*(saved_latent(result, node) for node in saved))
    side, frames = side_of(name), 1 if name.startswith("single") else 16
    note = f"{name}: computed again for this model, {frames} x {side}x{side} (frames x width x height)."
    assert result.notes.count(note) == 1


def test_a_condition_without_a_model_sets_the_length_and_size_and_is_cropped_once(scene):
    """From a wide source, for a size that is only set on STCEncode: the source is not cropped to a square first."""
    clip = scene.add("VCExampleClip", frames=40)
    wide = scene.add("ImageScale", image=clip[1], upscale_method="area", width=256, height=128, crop="center")
    video = scene.add("CreateVideo", images=wide, fps=8.0)

    def encoded(model, **size):
        motion = scene.add("MotionVectorExtract", video=video, **model, **size)
        sketch = scene.add("VCSketchSequence", video=video, **model, **size)
        return scene.encode(motion=motion, sketch=sketch, frames=8, width=96, height=48)

    stc = encoded({}, frames=8, width=96, height=48), encoded({"model": None})
    latents = scene.latents(*(scene.sample(node, steps=1) for node in stc))
    assert latents[0].shape == (1, 4, 8, 6, 12) and torch.equal(*latents)


def test_values_set_on_the_node_are_those_of_the_video(scene):
    motion = source(scene, "motion", model=None, frames=8, width=80)
    image = source(scene, "single_image", model=None)
    (latent,) = scene.latents(scene.sample(scene.encode(motion=motion, single_image=image), steps=1))
    assert latent.shape == (1, 4, 8, 8, 10)  # the height is the checkpoint's


def test_motions_add_up_with_and_without_a_model(scene):
    cases = [({}, {}), ({"model": None}, {}), ({}, {"model": None}), ({"model": None}, {"model": None})]
    track = '[{"x": 128, "y": 256}, {"x": 384, "y": 256}]'
    motions = [
        scene.add("VCMotionFromTracks", tracks=track, add_to=scene.add("VCCameraMotion", zoom=1.3, **other), **own)
        for own, other in cases
    ]
    saved = [scene.add("SaveLatent", samples=scene.sample(scene.encode(motion=motion), steps=1)) for motion in motions]
    result = scene.host.run(scene.graph)
    first, *others = (saved_latent(result, node) for node in saved)
    assert all(torch.equal(other, first) for other in others)
    assert sum("computed again" in note for note in result.notes) == 1  # one model is enough for both motions of a sum


def test_another_prompt_computes_nothing_again(scene):
    motion = scene.add("MotionVectorExtract", video=scene.add("VCExampleClip", frames=40)[0], model=None)
    encoders = [scene.encode(motion=motion), scene.encode(motion=motion, positive=scene.text("a blue square"))]
    for stc in encoders:
        scene.add("SaveLatent", samples=stc[2])
    events = scene.host.run(scene.graph).events
    busy = {data["node"] for kind, data in events if kind == "progress"}
    assert motion in busy and len(busy & set(encoders)) == 1


def test_a_condition_with_a_model_is_resampled_for_another_size(scene):
    """It is not computed again, because its node has a model."""
    sketch = source(scene, "sketch", width=128, height=128)
    scene.add("SaveLatent", samples=scene.encode(sketch=sketch, width=64, height=64)[2])
    notes = scene.host.run(scene.graph).notes
    large, small = side_of("sketch", 128), side_of("sketch")
    assert f"sketch: resampled from 16 x {large}x{large} to 16 x {small}x{small} (frames x width x height)." in notes
