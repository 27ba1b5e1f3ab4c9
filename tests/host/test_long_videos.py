"""Long videos in the nodes: texts that change over the frames. And the kinds of noise, which equal the core's."""

import pytest

from tests.host.reference import compose_latent, karras_sigmas, pan_motion
from tests.host.scene import TEXT, error
from tests.host.test_errors import assert_error
from tests.host.test_stock_nodes import cut
from vc_core import Condition

FRAMES, LATER, LAST = 32, "a blue square on a green and yellow gradient", "a yellow circle on a purple gradient"
ALLOWED = 1e-4


def scheduled(scene, *texts, frames=FRAMES):
    """Add the prompt with further texts, pairs of frame and text, and an STCEncode."""
    positive = scene.positive
    for frame, text in texts:
        positive = scene.add("VCTextSchedule", conditioning=positive, next_text=scene.text(text), frame=frame)
    return scene.encode(positive=positive, frames=frames)


def core_latent(composer, text, **settings):
    sigmas = karras_sigmas(composer.config, 3)
    settings = {"frames": FRAMES, "seed": 1, "sampler": "euler", "steps": 3, "guidance": 2.0, **settings}
    return compose_latent(composer, text, sigmas=sigmas, **settings)


def test_texts_and_shuffled_noise_equal_those_of_compose(scene, composer):
    stc = scheduled(scene, (31, LAST), (16, LATER))
    (actual,) = scene.latents(scene.sample(stc, steps=3, noise="shuffled"))
    expected = core_latent(composer, {0: TEXT, 16: LATER, 31: LAST}, noise="shuffled")
    assert error(actual, expected) <= ALLOWED
    for text, noise in ((TEXT, "shuffled"), ({0: TEXT, 31: LAST}, "shuffled"), ({0: TEXT, 16: LATER}, "independent")):
        assert error(core_latent(composer, text, noise=noise), expected) > 10 * ALLOWED


@pytest.mark.parametrize("noise", ["warped", "warped_fully"])
def test_noise_moves_with_the_motion_as_in_compose(scene, composer, noise):
    motion = scene.encode(motion=scene.add("VCCameraMotion", pan_right=0.4))
    (actual,) = scene.latents(scene.sample(motion, steps=3, noise=noise))
    pan = Condition("motion", pan_motion(composer.config, (0.4, 0.0), 16))
    expected = core_latent(composer, TEXT, frames=16, conditions=[pan], noise=noise)
    assert error(actual, expected) <= ALLOWED
    assert error(core_latent(composer, TEXT, frames=16, conditions=[pan]), expected) > 10 * ALLOWED


def test_a_later_negative_text_and_the_stock_windows(scene):
    stc, plain = scheduled(scene, (31, LATER)), scene.encode(frames=FRAMES)
    later = scene.add("VCTextSchedule", conditioning=scene.negative, next_text=scene.text(LAST), frame=31)
    windows = cut(scene, context_length=16, context_overlap=0, anchor=False)
    ours, negative, stock, without = scene.latents(
        scene.sample(stc),
        scene.sample(scene.encode(positive=stc[0], negative=later, frames=FRAMES)),
        scene.stock_sample(stc, model=windows),
        scene.stock_sample(plain, model=windows),
    )
    assert error(negative, ours) > 10 * ALLOWED
    assert error(stock[:, :, :16], without[:, :, :16]) <= ALLOWED  # the first window has the first text
    assert error(stock[:, :, 16:], without[:, :, 16:]) > 10 * ALLOWED


@pytest.mark.parametrize(
    ("frames", "texts", "noise", "node", "words"),
    [
        (FRAMES, [(8, LATER), (8, LAST)], "independent", "VCTextSchedule", ["'conditioning'", "frame 8"]),
        (FRAMES, [(32, LATER)], "independent", "VC3DUNetSampler", ["frame 32", "0 to 31"]),
        (16, [(8, LATER)], "independent", "VC3DUNetSampler", ["several windows", "16 frames"]),
        (16, [], "shuffled", "VC3DUNetSampler", ["'shuffled'", "several windows", "16 frames"]),
        (16, [], "warped", "VC3DUNetSampler", ["'warped'", "'motion'"]),
    ],
)
def test_wrong_texts_and_noise(scene, frames, texts, noise, node, words):
    scene.add("SaveLatent", samples=scene.sample(scheduled(scene, *texts, frames=frames), noise=noise))
    assert_error(scene, node, *words)


def test_a_text_schedule_as_the_next_text(scene):
    several = scene.add("VCTextSchedule", conditioning=scene.positive, next_text=scene.text(LATER), frame=8)
    last = scene.add("VCTextSchedule", conditioning=scene.positive, next_text=several, frame=16)
    scene.add("SaveLatent", samples=scene.sample(scene.encode(positive=last, frames=FRAMES)))
    assert_error(scene, "VCTextSchedule", "'next_text'", "several texts")
