"""The noise that sampling starts from, and texts that change over the frames of a long video."""

import pytest
import torch

from tests.composing import composed
from vc_core import Condition, Sampling, UserError, Windows
from vc_core.config import ExtractionConfig
from vc_core.diffusion import noise as noises
from vc_core.diffusion.noise import NOISES, arranged_noise, motion_for_noise
from vc_core.diffusion.texts import frame_read, tokens_of_window
from vc_core.encoders.clip import encode_text
from vc_core.pipeline import draw_noise


def noise_of(seeds, frames, size=(8, 8)):
    return draw_noise([torch.Generator().manual_seed(seed) for seed in seeds], (4, frames, *size))


def test_independent_noise_is_unchanged(tiny_composer):
    noise = noise_of([3, 4], 5)
    assert torch.equal(arranged_noise("independent", noise, 3, Windows(2)), noise)
    assert Sampling().noise == "independent"


@pytest.mark.parametrize(("windows", "frames"), [(Windows(16), 88), (Windows(8, 5), 17), (Windows(4, 0), 14)])
def test_every_window_has_the_shuffled_noise_of_the_first_one(windows, frames):
    noise = noise_of([0, 1], frames)
    shuffled = arranged_noise("shuffled", noise, 0, windows)
    assert torch.equal(shuffled[:, :, : windows.length], noise[:, :, : windows.length])
    orders = set()
    for video in shuffled:
        for span in windows.spans(frames):
            window = video[0, span, 0, 0].tolist()
            first = video[0, : windows.length, 0, 0].tolist()
            assert sorted(window) == sorted(first)  # noise of different frames differs in every pixel
            orders.add(tuple(map(first.index, window)))
    assert len(orders) > len(windows.spans(frames))  # and videos of different seeds are shuffled differently


@pytest.mark.parametrize("kind", NOISES)
def test_noise_does_not_depend_on_the_rest_of_the_batch(kind):
    noise, motion = noise_of([5, 6], 20), swirl(20)
    both = arranged_noise(kind, noise, 5, Windows(16), motion)
    assert torch.equal(both[1:], arranged_noise(kind, noise[1:], 6, Windows(16), motion))
    assert torch.equal(both, arranged_noise(kind, noise, 5, Windows(16), motion))


def swirl(frames, size=64):
    """A motion that shrinks, stretches and shears, with vectors up to 4 pixels long and out of the frame."""
    y, x = torch.meshgrid(*2 * [torch.arange(float(size)) - size / 2], indexing="ij")
    field = torch.stack([0.05 * x + 0.7 * torch.sin(y / 5), -0.08 * y + 0.5 * (x > 0)])
    return field[None, :, None].expand(1, 2, frames, size, size)


@pytest.mark.parametrize("kind", noises.WARPED)
def test_warped_noise_stays_standard_normal_and_white(kind):
    """Over many seeds: mean, variance and covariance of all pairs of pixels and channels of a frame."""
    motion, seeds = swirl(4, 32), 1000
    last = [arranged_noise(kind, noise_of([s], 4, (4, 4)), s, Windows(16), motion)[0, :, -1] for s in range(seeds)]
    values = torch.stack(last).flatten(1)  # (seeds, 64)
    error = seeds**-0.5  # standard error of a covariance of independent standard normal values
    assert abs(values.mean()) < 4 * error / 8
    covariance = values.T @ values / seeds
    assert (covariance.diag() - 1).abs().max() < 5 * 2**0.5 * error
    between = covariance[~torch.eye(64, dtype=bool)]
    assert between.abs().max() < 5 * error and between.square().mean().sqrt() == pytest.approx(error, rel=0.1)
    assert (values**4).mean() == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize(("pixels", "frame"), [((8, 0), 1), ((-0.5, 0), 16), ((0, 0.25), 32), ((1, -0.5), 16)])
def test_warped_noise_moves_with_the_motion(pixels, frame):
    """After a displacement of a latent pixel, which is 8 pixels, the part of the noise that moves is the same again."""
    noise, motion = noise_of([0], 33, (6, 7)), torch.zeros(1, 2, 33, 48, 56)
    motion[:, :, 1:] = torch.tensor(pixels).view(1, 2, 1, 1, 1)
    warped = arranged_noise("warped", noise, 0, Windows(16), motion)
    fraction = noises.WARPED["warped"]
    moving = ((warped - (1 - fraction) ** 0.5 * noise) / fraction**0.5)[0]
    shift = [round(pixel * frame / 8) for pixel in pixels]
    expected = moving[:, 0].roll(shift[::-1], (1, 2))
    torch.testing.assert_close(moving[:, frame, 2:-2, 2:-2], expected[:, 2:-2, 2:-2], rtol=1e-4, atol=1e-4)
    assert moving.std() == pytest.approx(1, abs=0.1)
    fully = arranged_noise("warped_fully", noise, 0, Windows(16), motion)[0]
    torch.testing.assert_close(fully, moving, rtol=1e-4, atol=1e-4)


def test_compose_starts_from_the_noise(tiny_composer):
    inputs = []
    hook = tiny_composer.unet.register_forward_pre_hook(lambda module, inputs_: inputs.append(inputs_[0][0, 0].clone()))
    try:
        videos = {kind: composed(tiny_composer, frames=6, steps=1, noise=kind) for kind in ("independent", "shuffled")}
    finally:
        hook.remove()
    windows = len(Windows(3).spans(6))
    independent, shuffled = inputs[:windows], inputs[windows:]
    assert torch.equal(independent[0], shuffled[0])
    for window in shuffled[1:]:
        assert sorted(window[:, 0, 0].tolist()) == sorted(shuffled[0][:, 0, 0].tolist())
    assert not torch.equal(independent[-1], shuffled[-1])
    assert torch.equal(videos["independent"], composed(tiny_composer, frames=6, steps=1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise": "white"}, "Unknown noise 'white'. Expected one of independent, shuffled"),
        ({"noise": "shuffled"}, "requires several windows, but 3 frames fit into one of 3"),
        ({"noise": "warped"}, "requires the condition 'motion'"),
        ({"noise": "warped", "conditions": [Condition("motion", torch.ones(1, 2, 3, 32, 40), 0.0)]}, "'motion'"),
        ({"noise": "shuffled", "frames": 9, "windows": Windows(9)}, "9 frames fit into one of 9"),
    ],
)
def test_wrong_noise(tiny_composer, settings, message):
    with pytest.raises(UserError, match=message):
        composed(tiny_composer, **settings)


def test_warped_noise_requires_a_dense_motion():
    motion = [Condition("motion", torch.ones(1, 2, 3, 32, 40))]
    with pytest.raises(UserError, match="requires a dense motion field"):
        motion_for_noise("warped", motion, ExtractionConfig())
    dense = ExtractionConfig(motion_layout="dense", motion_unit="pixels")
    assert motion_for_noise("warped", motion, dense) is motion[0].tensor
    assert motion_for_noise("shuffled", motion, dense) is None


def test_compose_warps_the_noise_with_its_motion(tiny_composer):
    still, moving = (Condition("motion", torch.full((1, 2, 3, 32, 40), value)) for value in (0.0, 8.0))
    inputs = []
    hook = tiny_composer.unet.register_forward_pre_hook(lambda module, inputs_: inputs.append(inputs_[0][0].clone()))
    try:
        for motion in (still, moving):
            composed(tiny_composer, steps=1, noise="warped", conditions=[motion])
    finally:
        hook.remove()
    noise = noise_of([0], 3, (4, 5))
    for motion, actual in zip((still, moving), inputs, strict=True):
        expected = arranged_noise("warped", noise, 0, Windows(3), motion.tensor)[0]
        torch.testing.assert_close(actual / actual.std(), expected / expected.std(), rtol=1e-3, atol=1e-3)


# --- Texts over frames ----------------------------------------------------------------------------------------------


def test_the_frame_that_a_window_reads():
    spans = Windows(16).spans(64)
    read = [frame_read(span, 64) for span in spans]
    assert read[0] == 0 and read[-1] == 63
    assert read[3] == pytest.approx(31.5)  # frames 24 to 39
    assert read == pytest.approx(torch.linspace(0, 63, len(spans)).tolist())


def test_tokens_are_interpolated_between_the_neighbouring_texts():
    tokens = {10: torch.zeros(1, 2, 3), 20: torch.ones(1, 2, 3), 40: torch.full((1, 2, 3), 3.0)}
    windows, total = Windows(1, 0), 51  # a window of one frame reads this frame
    values = [tokens_of_window(tokens, span, total)[0, 0, 0].item() for span in windows.spans(total)]
    assert values[:11] == [0] * 11 and values[40:] == [3] * 11
    assert values[15] == pytest.approx(0.5) and values[25] == pytest.approx(1.5)


def contexts_of(composer, text, **settings):
    """The positive contexts that the network is called with: one for each window, at the first step."""
    contexts = []
    hook = composer.unet.register_forward_pre_hook(lambda module, inputs: contexts.append(inputs[2][-1].clone()))
    try:
        composed(composer, text, steps=1, **settings)
    finally:
        hook.remove()
    return contexts


def test_windows_get_the_texts_of_their_frames(tiny_composer):
    first, last = encode_text(tiny_composer.load_towers("text"), ["a red circle", "a blue square"])
    contexts = contexts_of(tiny_composer, {8: "a blue square", 0: "a red circle"}, frames=9, windows=Windows(3, 0))
    assert len(contexts) == 3
    torch.testing.assert_close(contexts[0], first, rtol=0, atol=0)
    torch.testing.assert_close(contexts[2], last, rtol=0, atol=0)
    torch.testing.assert_close(contexts[1], (first + last) / 2)
    late = contexts_of(tiny_composer, {0: "a red circle", 2: "a blue square"}, frames=9, windows=Windows(3, 0))
    torch.testing.assert_close(late[1], last, rtol=0, atol=0)


@pytest.mark.parametrize("frames", [3, 7])
def test_one_text_at_a_frame_is_one_text(tiny_composer, frames):
    video = composed(tiny_composer, "a red circle", frames=frames, steps=2)
    assert torch.equal(composed(tiny_composer, {0: "a red circle"}, frames=frames, steps=2), video)
    texts = {0: "a red circle", frames - 1: "a red circle"}
    if frames == 7:
        torch.testing.assert_close(composed(tiny_composer, texts, frames=frames, steps=2), video)


def test_texts_over_frames_apply_to_every_video_of_a_batch(tiny_composer):
    texts = {0: "a", 6: "b"}
    both = composed(tiny_composer, texts, frames=7, steps=2, batch=2, seed=3)
    torch.testing.assert_close(both[1:], composed(tiny_composer, texts, frames=7, steps=2, seed=4), rtol=0, atol=1e-4)
    assert not torch.allclose(both[:1], composed(tiny_composer, "a", frames=7, steps=2, seed=3), atol=1e-4)


@pytest.mark.parametrize(
    ("text", "frames", "message"),
    [
        ({0: "a", 9: "b"}, 9, "There is a text for frame 9. Expected a frame from 0 to 8"),
        ({-1: "a", 2: "b"}, 9, "frame -1. Expected a frame from 0 to 8"),
        ({0: "a", 2: "b"}, 3, "requires several windows, but the 3 frames of this video fit into one"),
        ({}, 9, "Expected prompts by the numbers of their frames"),
        ({0: "a", "4": "b"}, 9, "Expected prompts by the numbers of their frames"),
        ({0: "a", 4: ["b"]}, 9, "Expected prompts by the numbers of their frames"),
    ],
)
def test_wrong_texts_over_frames(tiny_composer, text, frames, message):
    with pytest.raises(UserError, match=message):
        composed(tiny_composer, text, frames=frames)
