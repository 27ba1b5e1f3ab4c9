"""Context windows: splitting and blending long videos, and that a long video obeys over its full length."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.composing import composed
from vc_core import Condition, UserError, VideoComposer
from vc_core.demo import RATE, RED, STRIPES, TEXT, draw_clip, follow
from vc_core.diffusion.windows import WindowedDenoiser, Windows
from vc_core.extract.sources import Source, extract
from vc_core.pipeline import seen_by_window
from vc_core.video import plan_frames, probe, write_video


def starts(windows, frames):
    return [(span.start, span.stop) for span in windows.spans(frames)]


def test_positions_of_windows():
    assert starts(Windows(16), 28) == [(0, 16), (8, 24), (12, 28)]  # the last one is moved back so that it is full
    assert starts(Windows(16), 32) == [(0, 16), (8, 24), (16, 32)]
    assert starts(Windows(16), 17) == [(0, 16), (1, 17)]
    assert starts(Windows(16, 0), 32) == [(0, 16), (16, 32)]
    assert starts(Windows(1), 3) == [(0, 1), (1, 2), (2, 3)]
    for frames in (1, 15, 16):
        assert starts(Windows(16), frames) == [(0, frames)]


@settings(deadline=None)
@given(st.integers(1, 40), st.data())
def test_every_frame_is_covered_by_full_windows_whose_weights_sum_to_one(length, data):
    windows = Windows(length, data.draw(st.integers(0, length - 1)))
    frames = data.draw(st.integers(length, 5 * length))
    spans, total = windows.spans(frames), torch.zeros(frames)
    assert spans[0].start == 0 and spans[-1].stop == frames
    for before, after in pairwise(spans):
        assert before.start < after.start and before.stop - after.start >= windows.overlap
    for span, weight in zip(spans, windows.weights(frames), strict=True):
        assert span.stop - span.start == length == len(weight) and (weight > 0).all()
        total[span] += weight
    torch.testing.assert_close(total, torch.ones(frames))


def test_weights_are_a_tent_as_wide_as_the_overlap():
    first, second = Windows(8, 3).weights(13)
    torch.testing.assert_close(first, torch.tensor([1, 1, 1, 1, 1, 0.75, 0.5, 0.25]))
    torch.testing.assert_close(second, torch.tensor([0.25, 0.5, 0.75, 1, 1, 1, 1, 1]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0,), "at least 1 frame, got 0"), ((8, 8), "of 8 frames must be from 0 to 7, got 8"), ((8, -1), "got -1")],
)
def test_windows_with_a_wrong_length_or_overlap(arguments, message):
    with pytest.raises(UserError, match=message):
        Windows(*arguments)


def test_each_window_is_denoised_separately_and_blended():
    windows, inputs = Windows(4, 2), []

    def denoiser(value):
        return lambda x, t: inputs.append((x[0, 0, :, 0, 0].tolist(), float(t))) or torch.full_like(x, value)

    x = torch.arange(6.0).view(1, 1, 6, 1, 1).expand(2, 4, -1, 3, 3)
    out = WindowedDenoiser([denoiser(1.0), denoiser(4.0)], windows, 6)(x, torch.tensor(7))
    assert inputs == [([0, 1, 2, 3], 7), ([2, 3, 4, 5], 7)]
    torch.testing.assert_close(out[1, 3, :, 2, 2], torch.tensor([1.0, 1.0, 2.0, 3.0, 4.0, 4.0]))


def test_conditions_of_a_window():
    motion = Condition("motion", torch.arange(1.0, 9.0).view(1, 1, 8, 1, 1).expand(1, 2, 8, 4, 4), 0.8, 0.1, 0.9)
    depth, image = Condition("depth", motion.tensor[:, :1]), Condition("single_image", torch.ones(1, 3, 1, 8, 8), 0.6)

    def values(condition, span):
        return seen_by_window(condition, range(span.start, span.stop), 0.5).tensor[0, 0, :, 0, 0].tolist()

    assert values(motion, slice(0, 4)) == [1, 2, 3, 4]
    assert values(motion, slice(4, 8)) == [0, 6, 7, 8]  # nothing has moved into a clip's first frame
    assert values(depth, slice(4, 8)) == [5, 6, 7, 8]
    later = seen_by_window(motion, range(4, 8), 0.5)
    assert (later.strength, later.start, later.end) == (0.8, 0.1, 0.9)
    assert seen_by_window(image, range(4), 0.5).strength == 0.6
    assert seen_by_window(image, range(4, 8), 0.5).strength == pytest.approx(0.3)


def conditions(frames):
    numbers = torch.Generator().manual_seed(frames)
    return [
        Condition("motion", torch.randn(1, 2, frames, 32, 40, generator=numbers)),
        Condition("single_image", torch.rand(1, 3, 1, 48, 60, generator=numbers)),
    ]


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_a_video_within_one_window_is_not_changed(tiny_composer, frames):
    def video(windows):
        return composed(tiny_composer, "a", conditions=conditions(frames), frames=frames, windows=windows, steps=2)

    assert torch.equal(video(None), video(Windows(3, 2)))
    assert torch.equal(video(None), video(Windows(16)))


@pytest.mark.parametrize(
    ("frames", "windows", "count"),
    [(4, None, 2), (5, Windows(3, 2), 3), (3, Windows(1), 3), (5, Windows(5), 1), (6, Windows(2, 0), 3)],
)
def test_conditions_are_encoded_once_per_window_and_networks_see_windows(tiny_composer, frames, windows, count):
    encoded, lengths = [], []
    unet = tiny_composer.unet
    hooks = [
        unet.stc["motion"].register_forward_hook(lambda module, inputs, out: encoded.append(inputs[0].shape[2])),
        unet.register_forward_pre_hook(lambda module, inputs: lengths.append(inputs[0].shape[2])),
    ]
    try:
        video = composed(tiny_composer, "a", conditions=conditions(frames), frames=frames, windows=windows, steps=2)
    finally:
        for hook in hooks:
            hook.remove()
    length = (windows or Windows(3)).length
    assert video.shape == (1, 3, frames, 32, 40)
    assert encoded == [length] * count and lengths == [length] * count * 2


def test_a_long_batch_from_a_long_init_video(tiny_composer):
    video = torch.rand(1, 3, 5, 32, 40, generator=torch.Generator().manual_seed(0))
    options = {"init": video, "denoise": 0.5, "conditions": conditions(5), "steps": 2, "condition_guidance": 2.0}
    both = composed(tiny_composer, ["a", "b"], seed=3, sampler="ddim", eta=0.5, **options)
    alone = composed(tiny_composer, "b", seed=4, sampler="ddim", eta=0.5, **options)
    assert both.shape == (2, 3, 5, 32, 40)
    torch.testing.assert_close(both[1:], alone, rtol=1e-3, atol=1e-3)


def test_a_long_video_obeys_over_its_full_length_and_shows_no_seams(tmp_path):
    """28 frames with a checkpoint for 16: a moving disc, from a text, its motion and its first frame."""
    frames, composer = 28, VideoComposer.load()
    config = composer.config
    clip = write_video(tmp_path / "clip.mp4", draw_clip((0.6 / 64, 0.0), frames=frames), RATE)
    plan = plan_frames(probe(clip), frames, rate=RATE)
    source = Source(clip, plan, (config.height, config.width), config.extraction)
    conditions = [Condition(name, extract(name, source)) for name in ("motion", "single_image")]
    video = composed(composer, TEXT, conditions=conditions, frames=frames, steps=10)

    x, y = follow(video, RED, (*STRIPES, tuple(sum(c) / 2 for c in zip(*STRIPES, strict=True)))).T / video.shape[-1]
    commanded = 0.6 / 64
    assert 0.4 < (x[-1] - x[0]) / (27 * commanded) < 1.4
    assert (x[-1] - x[14]) / (13 * commanded) > 0.3  # after the first window, too
    assert (y - y[0]).abs().max() < 0.08

    change = (video[:, :, 1:] - video[:, :, :-1]).abs().mean((0, 1, 3, 4))  # between frames i and i + 1
    spans = Windows(config.frames).spans(frames)
    seams = {span.start - 1 for span in spans[1:]} | {span.stop - 1 for span in spans[:-1]}
    at_seams = torch.tensor([i in seams for i in range(frames - 1)])
    assert change[at_seams].mean() < 1.5 * change[~at_seams].mean()
