"""The meaning of strengths, schedules, prompts and styles in `compose()`."""

import warnings

import pytest
import torch

from tests.composing import composed
from vc_core import Condition, Sampling, Style, Tiling, UserError
from vc_core.conditions import CONDITIONS, Schedule
from vc_core.diffusion.guidance import Embedded, GuidedDenoiser, summed
from vc_core.diffusion.samplers import make_sampler

STEPS = 4


def tensor(name, frames=3, value=None):
    spec = CONDITIONS[name]
    frames = 1 if spec.kind == "spatial" else frames
    shape = (1, spec.channels, frames, 4 * spec.scale, 5 * spec.scale)
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) if value is None else torch.full(shape, value)


def run(composer, *conditions, **settings):
    settings = {"steps": STEPS, "sampler": "ddim", "seed": 5, **settings}
    return composed(composer, settings.pop("text", "a red circle"), conditions=conditions, **settings)


IMAGE = torch.rand(1, 3, 40, 30, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", CONDITIONS)
def test_absent_equals_strength_zero_and_an_empty_schedule(tiny_composer, name):
    absent = run(tiny_composer)
    present = run(tiny_composer, Condition(name, tensor(name)))
    assert absent.shape == (1, 3, 3, 32, 40)
    assert not torch.equal(absent, present)
    assert torch.equal(absent, run(tiny_composer, Condition(name, tensor(name), strength=0.0)))
    assert torch.equal(absent, run(tiny_composer, Condition(name, tensor(name), start=0.5, end=0.5)))


def test_a_condition_of_zeros_is_not_absent(tiny_composer):
    assert not torch.equal(run(tiny_composer), run(tiny_composer, Condition("motion", tensor("motion", value=0.0))))


def denoiser(composer, **settings):
    d = composer.config.unet.context_dim
    defaults = {
        "text": torch.ones(1, 77, d), "negative": torch.zeros(1, 77, d), "style": None,
        "no_style": torch.full((1, 1, d), 7.0), "stc": (), "guidance": 2.0,
    }  # fmt: skip
    return GuidedDenoiser(composer.unet, **{**defaults, **settings})


def test_strength_scales_the_embedding_and_conditions_add(tiny_composer):
    a, b = torch.randn(1, 8, 3, 4, 5), torch.randn(1, 8, 1, 4, 5)
    both = denoiser(tiny_composer, stc=[Embedded(a, Schedule(0.5)), Embedded(b, Schedule(-2.0))])
    torch.testing.assert_close(summed(both.stc, 0.3), 0.5 * a - 2 * b)
    assert summed(denoiser(tiny_composer).stc, 0.3) is None


@pytest.mark.parametrize(
    ("start", "end", "present"),
    [(0.0, 1.0, (0.0, 0.4, 0.6, 1.0)), (0.5, 1.0, (0.6, 1.0)), (0.0, 0.5, (0.0, 0.4)), (0.4, 0.6, (0.4,)), (0, 0, ())],
)
def test_schedule(tiny_composer, start, end, present):
    embedding = torch.ones(1, 8, 3, 4, 5)
    stc = denoiser(tiny_composer, stc=[Embedded(embedding, Schedule(1.0, start, end))]).stc
    assert tuple(p for p in (0.0, 0.4, 0.6, 1.0) if summed(stc, p) is not None) == present


def test_a_schedule_is_a_fraction_of_the_noise_schedule(tiny_composer):
    """The first half of it is the timesteps from 999 down to 500, for any number of steps."""
    acts = {}

    class Spy(GuidedDenoiser):
        def contexts(self, progress):
            acts[progress] = summed(self.stc, progress) is not None
            return super().contexts(progress)

    stc = [Embedded(torch.ones(1, 1, 1, 1, 1), Schedule(1.0, 0.0, 0.5))]
    d = Spy(tiny_composer.unet, *[torch.zeros(1, 77, 16)] * 2, None, None, stc, 1.0)
    for t in (999, 600, 400, 0):
        d(torch.zeros(1, 4, 1, 4, 4), torch.tensor(t))
    assert list(acts) == pytest.approx([0.0, 1 - 600 / 999, 1 - 400 / 999, 1.0])
    assert list(acts.values()) == [True, True, False, False]


def test_no_text_is_the_empty_prompt(tiny_composer):
    """Without text both sides of the guidance are the empty prompt, so its scale does not matter."""
    weak, strong = run(tiny_composer, text="", guidance=2.0), run(tiny_composer, text="", guidance=9.0)
    torch.testing.assert_close(weak, strong, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(run(tiny_composer, guidance=2.0), run(tiny_composer, guidance=9.0), atol=1e-3)
    assert torch.equal(weak, run(tiny_composer, text="", negative="", guidance=2.0))
    assert not torch.equal(run(tiny_composer), run(tiny_composer, negative="a blue square"))


def test_the_states_of_style(tiny_composer):
    token = torch.full((1, 1, 16), 3.0)
    absent = denoiser(tiny_composer)
    assert [side.shape[1] for side in absent.contexts(0.5)] == [77, 77]
    wired = denoiser(tiny_composer, style=Embedded(token, Schedule(0.5)))
    positive, negative = wired.contexts(0.5)
    assert torch.equal(positive[:, 77:], 0.5 * token)  # scaled after its projection
    assert torch.equal(negative[:, 77:], torch.full((1, 1, 16), 7.0))  # the token of an image of zeros
    removed = denoiser(tiny_composer, style=Embedded(token, Schedule(0.0)))
    assert [side.shape[1] for side in removed.contexts(0.5)] == [77, 77]
    late = denoiser(tiny_composer, style=Embedded(token, Schedule(1.0, 0.5, 1.0)))
    assert [late.contexts(p)[0].shape[1] for p in (0.2, 0.8)] == [77, 78]

    none = run(tiny_composer)
    assert torch.equal(none, run(tiny_composer, style=Style(IMAGE, strength=0.0)))
    assert not torch.equal(none, run(tiny_composer, style=Style(IMAGE)))
    assert not torch.equal(none, run(tiny_composer, style=Style(torch.zeros_like(IMAGE))))


def test_a_prompt_can_be_longer_than_the_negative(tiny_composer):
    long = denoiser(tiny_composer, text=torch.rand(1, 154, 16), negative=torch.rand(1, 77, 16))
    assert [side.shape for side in long.contexts(0.5)] == [(1, 154, 16)] * 2


@pytest.mark.parametrize(
    ("steps", "count", "first"), [(50, 50, 981), (30, 31, 991), (600, 1000, 999), (1000, 1000, 999)]
)
def test_ddim_released_is_the_released_grid(tiny_config, steps, count, first):
    """1 + k * (1000 // steps): more than `steps` timesteps if `steps` does not divide 1000."""
    sampler = make_sampler(Sampling("ddim_released", steps), tiny_config.diffusion)
    assert (len(sampler.timesteps), sampler.timesteps[0], sampler.timesteps[-1]) == (count, first, 1)
    x = torch.randn(1, 4, 1, 2, 2)
    assert sampler.scheduler.step(x, sampler.keys[0], x).prev_sample.isfinite().all()


def test_guidance_1_computes_one_prediction_per_step(tiny_composer):
    calls = []
    handle = tiny_composer.unet.conv_in.register_forward_hook(lambda module, args, out: calls.append(len(out)))
    run(tiny_composer, guidance=1.0)
    run(tiny_composer, guidance=2.0)
    handle.remove()
    assert calls == [3] * STEPS + [6] * STEPS


def test_the_same_seed_gives_the_same_video(tiny_composer):
    first, again, other = (run(tiny_composer, seed=seed, sampler="dpmpp_2m") for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_conditions_are_encoded_once(tiny_composer):
    calls = []
    handle = tiny_composer.unet.stc["motion"].register_forward_hook(lambda *_: calls.append(1))
    run(tiny_composer, Condition("motion", tensor("motion")))
    handle.remove()
    assert calls == [1]


def test_progress_and_cancellation_at_every_step(tiny_composer):
    steps = []

    class Cancelled(Exception):
        pass

    def progress(what, done, total):
        if what == "sampling":
            steps.append((done, total))
            if done == 2 and len(steps) > STEPS:
                raise Cancelled

    run(tiny_composer, progress=progress)
    assert steps == [(i + 1, STEPS) for i in range(STEPS)]
    with pytest.raises(Cancelled):
        run(tiny_composer, progress=progress)
    assert len(steps) == STEPS + 2


def test_decoding_in_chunks_changes_nothing(tiny_composer):
    torch.testing.assert_close(run(tiny_composer, tiling=Tiling(1)), run(tiny_composer), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": (32, 36)}, "multiples of 8.*Got 36x32"),
        ({"size": (0, 8)}, "multiples of 8"),
        ({"frames": 0}, "at least 1"),
        ({"sampler": "heun"}, "Unknown sampler 'heun'.*dpmpp_2m"),
        ({"steps": 0}, "steps must be from 1 to 1000, got 0"),
        ({"seed": 2**64}, "seed must be .*, got 18446744073709551616"),
        ({"seed": -1}, "seed must be .*, got -1"),
        ({"seed": 1.5}, "seed must be an integer .*, got 1.5"),
        ({"seed": "5"}, "seed must be an integer .*, got '5'"),
        ({"text": None}, "text is None. Expected a string"),
        ({"text": ["a", 3]}, r"text is \['a', 3\]. Expected a string"),
        ({"text": b"a"}, "text is b'a'. Expected a string"),
        ({"negative": 3}, "negative is 3. Expected a string"),
        ({"guidance": float("nan")}, "guidance must be a finite number, got nan"),
        ({"guidance": "9"}, "guidance must be a finite number, got '9'"),
        ({"condition_guidance": float("inf")}, "condition_guidance must be .*, got inf"),
        ({"rescale": float("nan")}, "rescale must be .*, got nan"),
        ({"rescale": "0"}, "rescale must be .*, got '0'"),
        ({"conditions": [Condition("motion", tensor("motion", frames=2))]}, "'motion' has 2 frames. Expected 3 for"),
        ({"conditions": [Condition("motion", tensor("motion"))] * 2}, "'motion' was passed twice"),
    ],
)
def test_wrong_settings_are_refused(tiny_composer, settings, message):
    with pytest.raises(UserError, match=message):
        composed(tiny_composer, **{"text": "", "steps": STEPS, **settings})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("colour", torch.zeros(1, 1, 1, 8, 8)), "Unknown condition 'colour'.*motion"),
        (("motion", torch.zeros(1, 3, 2, 8, 8)), r"'motion' has shape \(1, 3, 2, 8, 8\).*\(batch, 2, frames"),
        (("depth", torch.full((1, 1, 2, 8, 8), float("nan"))), "'depth' contains values that are not finite"),
        (("depth", torch.zeros(1, 1, 0, 8, 8)), r"'depth' has shape \(1, 1, 0, 8, 8\), which is empty"),
        (("depth", torch.zeros(0, 1, 2, 8, 8)), r"'depth' has shape .* which is empty"),
        (("depth", torch.zeros(1, 1, 2, 8, 8), 1.0, 0.6, 0.4), "'depth' runs from 0.6 to 0.4"),
        (("depth", torch.zeros(1, 1, 2, 8, 8), float("inf")), "strength inf"),
    ],
)
def test_wrong_conditions_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        Condition(*arguments)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        ([255, 0], "has the type torch.int64. Expected a floating-point tensor of RGB"),
        ([255.0, 0.0], r"has values from 0 to 255. Expected RGB in \[0, 1\]"),
        ([0.5, -0.02], "has values from -0.02 to 0.5"),
        ([0.5, float("nan")], "has values from nan"),
        ([0.5, float("inf")], "has values from 0.5 to inf"),
        ([], "has the shape .* Expected"),
    ],
)
def test_images_that_are_not_rgb(tiny_composer, pixels, message):
    image = torch.tensor(pixels).expand(1, 3, 2, -1)
    with pytest.raises(UserError, match=f"The style image {message}"):
        Style(image)
    with pytest.raises(UserError, match=f"The init video {message}"):
        composed(tiny_composer, init=image[:, :, None], denoise=0.5, steps=STEPS)


@pytest.mark.parametrize("shape", [(8, 8), (3, 8, 8), (1, 4, 8, 8), (1, 8, 8, 3), (1, 3, 1, 8, 8)])
def test_style_images_of_another_shape(shape):
    with pytest.raises(UserError, match=r"style image has the shape .*Expected \(batch, 3, height, width\)"):
        Style(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(8, 8), (1, 3, 8, 8), (1, 3, 8, 8, 3), (3, 8, 8, 8)])
def test_videos_of_another_shape(tiny_composer, shape):
    with pytest.raises(UserError, match=r"video has the shape .*Expected \(batch, 3, (frames|3), height, width\)"):
        composed(tiny_composer, init=torch.zeros(shape), frames=3, denoise=0.5, steps=STEPS)


def test_images_that_are_not_tensors(tiny_composer):
    with pytest.raises(UserError, match=r"style image has the type str\. Expected a floating-point tensor"):
        Style("style.png")
    with pytest.raises(UserError, match=r"video has the type str. Expected a floating-point tensor"):
        composed(tiny_composer, init="clip.mp4", denoise=0.5, steps=STEPS)


def test_resized_images_may_overshoot_a_little():
    assert Style(torch.tensor([-0.01, 1.01]).expand(1, 3, 1, 2)).strength == 1.0


def test_the_result_can_be_changed_in_place(tiny_composer):
    video = run(tiny_composer)
    before = video.clone()
    torch.testing.assert_close(video.mul_(2), before * 2)
    assert not video.requires_grad


def test_the_warning_of_a_cut_prompt_names_the_lost_words(tiny_composer):
    words = " ".join(["red"] * 75)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        short = run(tiny_composer, text=words)
    with pytest.warns(UserWarning, match="3 tokens longer than the 75 .* cut: 'a blue square'. Shorten") as caught:
        cut = run(tiny_composer, text=words + " a blue square")
    assert len(caught) == 1 and torch.equal(short, cut)
    with pytest.warns(UserWarning) as caught:
        run(tiny_composer, text=words + " green" * 5000)
    assert len(str(caught[0].message)) < 400
