"""A checkpoint whose config sets the size of conditions: nodes, STCEncode and the network follow it."""

from dataclasses import replace

import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from tests.host.reference import clip_motion, compose_latent, karras_sigmas, pan_motion
from tests.host.scene import TEXT, Scene, error, saved_latent
from tests.host.test_conditions import SOURCES, source
from vc_core.checkpoint.reading import BUNDLED
from vc_core.conditions import Condition, condition_size
from vc_core.config import Config
from vc_core.demo import draw_clip
from vc_core.extract.refit import refit
from vc_core.extract.sketch.methods import edges
from vc_core.video import resize_crop

ALLOWED, STEPS = 1e-4, 4
NAME, RELEASED = "scale4.safetensors", "released_scale.safetensors"


@pytest.fixture(scope="module")
def scaled(host):
    """Two copies of the bundled checkpoint: one expects conditions at 4 times the latent's size, one at the
    table's size. Returns the first, loaded by the core."""
    from vc_core.composer import VideoComposer

    with safe_open(BUNDLED, "pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    config = Config.from_json(metadata["config"])
    for name, scale in ((NAME, 4), (RELEASED, None)):
        changed = replace(config, extraction=replace(config.extraction, condition_scale=scale))
        save_file(tensors, host.checkpoints / name, {**metadata, "config": changed.to_json()})
    return VideoComposer.load(host.checkpoints / NAME, device="cpu", dtype="fp32")


@pytest.fixture
def scene(host, scaled):
    return Scene(host, NAME)


def expected(composer, *conditions):
    schedule = {"sampler": "euler", "steps": STEPS, "sigmas": karras_sigmas(composer.config, STEPS)}
    return compose_latent(composer, TEXT, conditions=conditions, seed=1, guidance=2.0, **schedule)


def conditions_for(scene, model):
    """Add nodes that compute a motion, a sketch and an image for a model."""
    clip = scene.add("VCExampleClip")
    return {
        "motion": scene.add("VCCameraMotion", pan_right=0.3, model=model),
        "sketch": scene.add("VCSketchSequence", video=clip[1], method="edges", model=model),
        "single_image": scene.add("VCSingleImage", image=clip[1], model=model),
    }


def test_nodes_compute_the_same_conditions_as_the_core(scene, scaled):
    clip, config = scene.add("VCExampleClip"), scaled.config
    stc = scene.encode(
        motion=scene.add("MotionVectorExtract", video=clip[1]),
        sketch=scene.add("VCSketchSequence", video=clip[1], method="edges"),
        single_image=scene.add("VCSingleImage", image=clip[1]),
    )
    (actual,) = scene.latents(scene.sample(stc, steps=STEPS))
    size, extraction = (config.height, config.width), config.extraction
    pictures = resize_crop(draw_clip(), condition_size("sketch", size))
    conditions = {"motion": clip_motion(config)}
    for name, tensor in {"sketch": edges(pictures), "single_image": pictures[:, :, :1]}.items():
        conditions[name] = refit(name, tensor, size, tensor.shape[2], extraction)
    assert [tuple(value.shape[-2:]) for value in conditions.values()] == [(32, 32)] * 3
    assert error(actual, expected(scaled, *(Condition(*item) for item in conditions.items()))) <= ALLOWED


def test_motion_from_a_camera_is_in_pixels_of_the_video(scene, scaled):
    stc = scene.encode(motion=scene.add("VCCameraMotion", pan_right=0.3))
    (actual,) = scene.latents(scene.sample(stc, steps=STEPS))
    motion = pan_motion(scaled.config, (0.3, 0.0), 16)
    assert motion.shape[-2:] == (32, 32)
    assert motion[0, 0, 1:].mean().item() == pytest.approx(-0.3 * 64 / 15, rel=1e-4)
    assert error(actual, expected(scaled, Condition("motion", motion))) <= ALLOWED


def test_conditions_of_another_checkpoint_are_resized_and_a_note_says_so(scene):
    """By STCEncode, or by the network if STCEncode used the other checkpoint too."""
    other = scene.add("VCCheckpointLoader", ckpt_name=RELEASED, weight_dtype="fp32")
    own = scene.encode(**conditions_for(scene, scene.loader))
    by_stc = scene.encode(**conditions_for(scene, other))
    by_network = scene.encode(**conditions_for(scene, other), model=other)
    samples = [scene.sample(stc, steps=STEPS) for stc in (own, by_stc, by_network)]
    samples.append(scene.sample(by_network, steps=STEPS, model=other))
    saved = [scene.add("SaveLatent", samples=each) for each in samples]
    result = scene.host.run(scene.graph)
    right, after_stc, in_network, plain = (saved_latent(result, node) for node in saved)
    assert error(after_stc, right) <= ALLOWED and error(in_network, right) <= ALLOWED
    assert error(plain, right) > 10 * ALLOWED  # the size counts
    notes = "\n".join(result.notes)
    assert "motion: resampled from 16 x 64x64 to 16 x 32x32 (frames x width x height)." in notes
    assert "sketch: resampled from 16 x 96x96 to 16 x 32x32 (frames x width x height)." in notes
    assert "motion, sketch, single_image: resampled to the latent's size, 64x64." in notes


def test_motions_add_up_for_one_checkpoint_and_between_two(scene):
    other = scene.add("VCCheckpointLoader", ckpt_name=RELEASED, weight_dtype="fp32")
    sums = [
        scene.add("VCCameraMotion", zoom=1.3, add_to=scene.add("VCCameraMotion", pan_right=0.3, model=model))
        for model in (scene.loader, other)
    ]
    first, second = scene.latents(*(scene.sample(scene.encode(motion=motion), steps=STEPS) for motion in sums))
    assert error(second, first) <= ALLOWED


@pytest.mark.parametrize("name", SOURCES)
def test_previews_have_the_size_that_the_network_sees(scene, name):
    scene.add("SaveImage", images=source(scene, name)[1], filename_prefix="seen4")
    with Image.open(scene.host.run(scene.graph).files[-1]) as picture:
        assert picture.size == (32, 32)
        low, high = picture.convert("L").getextrema()
        assert high - low > 20  # not blank
