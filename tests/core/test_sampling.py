"""Samplers with exact denoisers; guidance; video to video; batches."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.composing import composed
from vc_core import Condition, Sampling, Style, Tiling, UserError, compose
from vc_core.conditions import Schedule
from vc_core.config import AutoencoderConfig, DiffusionConfig
from vc_core.diffusion.guidance import (
    CONDITIONED,
    EVERYTHING,
    NOTHING,
    Embedded,
    GuidedDenoiser,
    combine,
    needed_sides,
)
from vc_core.diffusion.samplers import SAMPLERS, lcm_timesteps, make_sampler, released_timesteps, sample
from vc_core.pipeline import draw_noise, encode_video

LINEAR = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
SHORT = {"steps": 100, "beta_start": 0.0085, "beta_end": 0.12}
NOISE_ALONE = {"zero_terminal_snr": True}
MEAN = 0.7
DDIMS = ("ddim", "ddim_released")


def remaining_signal(config, t):
    """The fraction of the signal's variance at a timestep, which may be fractional."""
    alphas = config.alphas_cumprod
    levels = ((1 - alphas) / alphas).log().numpy()
    return 1 / (1 + math.exp(np.interp(float(t), np.arange(config.steps), levels)))


def exact(config, deviation):
    """The best possible denoiser for data normally distributed around MEAN; for a point if the deviation is 0."""

    def denoise(x, t):
        a = remaining_signal(config, t)
        x = x.double()
        clean = (MEAN * (1 - a) + deviation**2 * math.sqrt(a) * x) / (1 - a + deviation**2 * a)
        noise = (x - math.sqrt(a) * clean) / math.sqrt(1 - a)
        velocity = math.sqrt(a) * noise - math.sqrt(1 - a) * clean
        return (noise if config.prediction == "epsilon" else velocity).float()

    return denoise


def run(name, config, steps, deviation, noise, latent=None, **settings):
    sampler = make_sampler(Sampling(name, steps, **settings), config)
    generators = [torch.Generator().manual_seed(i) for i in range(len(noise))]
    return sample(exact(config, deviation), sampler.start(noise, latent), sampler, generators)


def gaussian(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("schedule", [{}, LINEAR, SHORT, NOISE_ALONE], ids=["released", "linear", "short", "zsnr"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_any_number_of_steps_reaches_a_point(name, schedule, prediction):
    if schedule is NOISE_ALONE and prediction == "epsilon":
        with pytest.raises(UserError, match="requires the prediction v_prediction"):
            DiffusionConfig(prediction=prediction, **schedule)
        return
    config = DiffusionConfig(prediction=prediction, **schedule)
    for steps in (1, 2, 7, 20, 50):
        if name == "ddim_released":
            # The released loop ends at the schedule's lowest noise level, not at zero.
            steps, tolerance = max(steps, 7), 5 * math.sqrt(1 - remaining_signal(config, 0))
        else:
            tolerance = 1e-4 if schedule is not NOISE_ALONE else 2e-3  # float32, next to a noise level of 4518
        out = run(name, config, steps, 0.0, gaussian(1, 4, 2, 4, 4))
        assert (out - MEAN).abs().max() < tolerance, steps


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "lcm"])
def test_a_normal_distribution_is_mapped_along_the_exact_path(name, prediction):
    """Here the probability flow has an exact solution: it preserves the standardised noise."""
    config, deviation, noise = DiffusionConfig(prediction=prediction), 0.5, gaussian(1, 4, 4, 16, 16)
    a = remaining_signal(config, config.steps - 1)
    expected = MEAN + deviation * (noise - math.sqrt(a) * MEAN) / math.sqrt(a * deviation**2 + 1 - a)
    errors = [float((run(name, config, steps, deviation, noise) - expected).abs().max()) for steps in (10, 100)]
    first_order = {"ddim": 0.1, "ddim_released": 0.1, "euler": 0.06}
    assert errors[1] < first_order.get(name, 0.01)
    assert errors[1] < errors[0] / 4


def test_second_order_samplers_are_more_accurate_than_ddim():
    config, noise = DiffusionConfig(), gaussian(1, 4, 4, 16, 16)
    reference = run("ddim", config, 1000, 0.5, noise)
    error = {name: (run(name, config, 15, 0.5, noise) - reference).abs().mean() for name in SAMPLERS}
    assert max(error["dpmpp_2m"], error["unipc"]) < error["ddim"] / 4


@pytest.mark.parametrize(("name", "eta"), [("ddim", 1.0), ("ddim_released", 1.0), ("ddim", 0.5)])
def test_new_noise_preserves_the_distribution(name, eta):
    out = run(name, DiffusionConfig(), 200, 0.5, gaussian(1, 4, 16, 32, 32), eta=eta)
    assert out.mean() == pytest.approx(MEAN, abs=0.02)
    assert out.std() == pytest.approx(0.5, abs=0.02)
    assert not torch.equal(out, run(name, DiffusionConfig(), 200, 0.5, gaussian(1, 4, 16, 32, 32)))


@pytest.mark.parametrize("name", ["dpmpp_2m", "unipc", "euler"])
def test_noise_levels_come_from_the_exact_schedule(name):
    for config in (DiffusionConfig(), DiffusionConfig(**LINEAR), DiffusionConfig(**SHORT)):
        alphas = config.alphas_cumprod
        levels = ((1 - alphas) / alphas).sqrt()
        sampler = make_sampler(Sampling(name, 20), config)
        sigmas = sampler.scheduler.sigmas.double()
        assert sigmas[[0, -2, -1]].tolist() == pytest.approx([levels[-1].item(), levels[0].item(), 0.0], rel=1e-6)
        squares = [(1 - remaining_signal(config, t)) / remaining_signal(config, t) for t in sampler.timesteps]
        assert torch.tensor(squares).sqrt().tolist() == pytest.approx(sigmas[:-1].tolist(), rel=1e-4)
        assert sampler.timesteps[[0, -1]].tolist() == pytest.approx([config.steps - 1, 0], abs=1e-3)


@pytest.mark.parametrize("steps", [1, 3, 8, 30, 50, 77, 600])
@pytest.mark.parametrize("name", SAMPLERS)
def test_steps_descend_from_the_last_timestep(name, steps):
    sampler = make_sampler(Sampling(name, steps), DiffusionConfig())
    t = sampler.timesteps
    if name != "ddim_released":
        assert len(t) == steps and t[0] == pytest.approx(999, abs=1e-3)
        assert (t[1:] < t[:-1]).all()
    assert len(t) == len(sampler.keys) and 0 <= t.min() <= t.max() <= 999


# --- From a video ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "denoise", "total"), [(8, 0.4, 20), (5, 0.05, 100), (3, 0.7, 4)])
@pytest.mark.parametrize("name", SAMPLERS)
def test_denoise_runs_the_last_steps_of_a_longer_run(name, steps, denoise, total):
    config, noise, latent = DiffusionConfig(), gaussian(1, 4, 1, 4, 4), gaussian(1, 4, 1, 4, 4, seed=1)
    full, part = (make_sampler(Sampling(name, *each), config) for each in ((total,), (steps, denoise)))
    inputs = []
    sample(lambda x, t: inputs.append((x, float(t))) or x, part.start(noise, latent), part, [torch.Generator()])
    assert [t for _, t in inputs] == full.timesteps[-steps:].tolist()
    x, t = inputs[0]
    a = remaining_signal(config, t)
    torch.testing.assert_close(x, math.sqrt(a) * latent + math.sqrt(1 - a) * noise, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("steps", "denoise", "first", "count"),
    [(51, 0.1, 100, 100), (30, 0.5, 497, 32), (20, 0.29, 281, 21), (50, 0.5, 491, 50), (1, 0.0009995, 1, 1)],
)
def test_ddim_released_starts_at_the_requested_noise(steps, denoise, first, count):
    """If `steps` does not divide 1000, its grid has more steps: the last `steps` would start with too little noise."""
    config, noise, latent = DiffusionConfig(), gaussian(1, 4, 1, 4, 4), gaussian(1, 4, 1, 4, 4, seed=1)
    sampler, inputs = make_sampler(Sampling("ddim_released", steps, denoise), config), []
    sample(lambda x, t: inputs.append((x, float(t))) or x, sampler.start(noise, latent), sampler)
    assert (inputs[0][1], inputs[-1][1], len(inputs)) == (first, 1, count)
    a = remaining_signal(config, first)
    torch.testing.assert_close(inputs[0][0], math.sqrt(a) * latent + math.sqrt(1 - a) * noise, rtol=1e-4, atol=1e-4)


def test_the_highest_timestep_of_a_part_is_not_lost_to_rounding():
    """0.29 of 100 timesteps is 28.999999999999996."""
    sampler = make_sampler(Sampling("ddim_released", 29, 0.29), DiffusionConfig(**SHORT))
    assert sampler.timesteps[0] == 29


@pytest.mark.parametrize(("steps", "denoise"), [(20, 1.0), (51, 1.0), (30, 0.5), (20, 0.29)])
def test_the_released_timesteps_are_those_of_its_sampler(steps, denoise):
    sampler = make_sampler(Sampling("ddim_released", steps, denoise), DiffusionConfig())
    assert released_timesteps(DiffusionConfig(), steps, denoise).tolist() == sampler.timesteps.tolist()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", ["dpmpp_2m", "unipc", "euler"])
def test_sigmas_replace_the_noise_levels(name, prediction):
    """Sigmas of every 50th timestep: the network receives integers, and the start is noise of unit variance."""
    config = DiffusionConfig(prediction=prediction)
    alphas = config.alphas_cumprod
    sigmas = torch.cat([((1 - alphas) / alphas).sqrt()[range(999, 0, -50)], torch.zeros(1)])
    sampler = make_sampler(Sampling(name, 20, sigmas=sigmas), config)
    assert sampler.timesteps.tolist() == list(range(999, 0, -50))
    out = run(name, config, 20, 0.0, noise := gaussian(1, 4, 2, 4, 4), sigmas=sigmas)
    assert (out - MEAN).abs().max() < 1e-4
    first = sampler.scheduler.scale_model_input(sampler.start(noise), sampler.keys[0])
    torch.testing.assert_close(first, noise, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_part_of_a_run_also_reaches_the_point(name):
    out = run(name, DiffusionConfig(), 6, 0.0, gaussian(1, 4, 1, 4, 4), gaussian(1, 4, 1, 4, 4, seed=1), denoise=0.5)
    assert (out - MEAN).abs().max() < (0.2 if name == "ddim_released" else 1e-4)


def test_more_denoising_changes_the_video_more(tiny_composer, monkeypatch):
    monkeypatch.setattr("vc_core.encoders.autoencoder.decode", lambda autoencoder, latent, *_: latent)
    video = torch.rand(1, 3, 3, 64, 60, generator=torch.Generator().manual_seed(0))  # another size: it is resized
    source = encode_video(tiny_composer, video, (32, 40))  # its factor is 1
    scaled = replace(tiny_composer.config, autoencoder=AutoencoderConfig("taesd", 50.0))
    composer = replace(tiny_composer, config=scaled)

    def change(denoise):
        latent = composed(composer, "a", init=video, denoise=denoise, steps=2, sampler="euler")
        assert latent.shape == source.shape == (1, 4, 3, 4, 5)
        return float((latent - source).abs().mean())

    small, middle, large = (change(denoise) for denoise in (0.002, 0.3, 0.9))
    assert small < 0.2 * source.abs().mean() and small < middle / 3 and middle < large / 1.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"denoise": 0.5}, "denoise 0.5 requires an init video"),
        ({"init": torch.zeros(1, 3, 3, 32, 40)}, "denoise 1 keeps nothing"),
        ({"init": torch.zeros(1, 3, 3, 32, 40), "denoise": 0.0}, "denoise must be above 0.*got 0.0"),
        ({"init": torch.zeros(1, 3, 3, 32, 40), "denoise": 1.5}, "denoise must be .*at most 1, got 1.5"),
        ({"init": torch.zeros(1, 3, 3, 32, 40), "denoise": 0.001}, "last of 4000.*at most 1000"),
        ({"init": torch.zeros(1, 3, 4, 32, 40), "denoise": 0.5, "frames": 3}, r"\(1, 3, 4, 32, 40\).*3, 3, height"),
        ({"init": torch.zeros(3, 3, 32, 40), "denoise": 0.5, "frames": 3}, "init video has the shape"),
        ({"eta": 0.5}, "'dpmpp_2m' does not support eta 0.5.*ddim, ddim_released"),
        ({"eta": 1.5, "sampler": "ddim"}, "eta must be from 0 to 1, got 1.5"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"text": ["a", "b"], "batch": 3}, "'text' has 2 items .*Expected 1 or 3"),
        ({"text": []}, "'text' has 0 items"),
        ({"negative": ["a", "b"]}, "'negative' has 2 items for a batch of 1. Expected 1"),
        ({"batch": 3, "conditions": [Condition("motion", torch.zeros(2, 2, 3, 32, 40))]}, "'motion' has 2 .*1 or 3"),
        ({"batch": 3, "style": Style(torch.zeros(2, 3, 32, 32))}, "'style' has 2 items"),
        ({"batch": 3, "init": torch.zeros(2, 3, 3, 32, 40), "denoise": 0.5}, "'init' has 2 items"),
        ({"seed": 2**63 - 1, "batch": 2}, f"seed .*0 to {2**63 - 2}, got {2**63 - 1}"),
        ({"rescale": 1.5}, "rescale must be from 0 to 1, got 1.5"),
        ({"sigmas": torch.tensor([14.6, 1.0, 0.0]), "sampler": "ddim"}, "dpmpp_2m, unipc, euler. Got 3 .*'ddim'"),
    ],
)
def test_wrong_sampling_settings_are_refused(tiny_composer, settings, message):
    with pytest.raises(UserError, match=message):
        composed(tiny_composer, **{"text": "a", "steps": 4, **settings})


def test_argument_names_of_earlier_versions_still_work(tiny_composer):
    video = torch.rand(1, 3, 3, 32, 40, generator=torch.Generator().manual_seed(0))
    sampling = Sampling("ddim", 3, 0.5, eta=0.5, guidance=3.0, rescale=0.5)
    now = compose(tiny_composer, "a", init=video, sampling=sampling, tiling=Tiling(1))
    earlier = {"sampler": "ddim", "steps": 3, "denoise": 0.5, "eta": 0.5, "guidance": 3.0, "rescale": 0.5, "chunk": 1}
    with pytest.warns(DeprecationWarning) as caught:
        assert torch.equal(now, compose(tiny_composer, "a", video=video, **earlier))
    assert len(caught) == 1 and caught[0].filename == __file__  # the caller's file
    message = str(caught[0].message)
    assert message.endswith("tiling=Tiling(chunk=...) instead of chunk=.")
    assert "init=... instead of video=" in message and "sampling=Sampling(steps=...) instead of steps=" in message
    with pytest.raises(TypeError, match=r"compose\(\) got an unexpected keyword argument 'stepps'"):
        compose(tiny_composer, "a", stepps=3, steps=2)


# --- Guidance -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("guidance", "condition_guidance", "sides"),
    [
        (1.0, 1.0, [EVERYTHING]),
        (9.0, 1.0, [CONDITIONED, EVERYTHING]),
        (0.0, 1.0, [CONDITIONED]),
        (3.0, 3.0, [NOTHING, EVERYTHING]),
        (0.0, 3.0, [NOTHING, CONDITIONED]),
        (0.0, 0.0, [NOTHING]),
        (1.0, 3.0, [NOTHING, CONDITIONED, EVERYTHING]),
        (9.0, 3.0, [NOTHING, CONDITIONED, EVERYTHING]),
        (9.0, 0.0, [NOTHING, CONDITIONED, EVERYTHING]),
    ],
)
def test_only_sides_with_an_effect_are_predicted(guidance, condition_guidance, sides):
    e = {side: gaussian(2, 4, 3, 4, 4, seed=side).double() for side in (NOTHING, CONDITIONED, EVERYTHING)}
    full = e[NOTHING] + condition_guidance * (e[CONDITIONED] - e[NOTHING]) + guidance * (e[EVERYTHING] - e[CONDITIONED])
    needed, scales = needed_sides(guidance, condition_guidance)
    assert needed == sides
    torch.testing.assert_close(combine([e[side] for side in needed], scales), full)


def test_without_condition_guidance_the_result_is_the_released_one_to_the_bit():
    negative, positive = gaussian(2, 4, 3, 4, 4), gaussian(2, 4, 3, 4, 4, seed=1)
    _, scales = needed_sides(9.0, 1.0)
    assert torch.equal(combine([negative, positive], scales), negative + 9.0 * (positive - negative))


def test_rescaling_restores_the_deviation_of_each_video():
    negative, positive = gaussian(2, 4, 3, 4, 4), gaussian(2, 4, 3, 4, 4, seed=1)
    guided = combine([negative, positive], [9.0])

    def deviation(x):
        return x.flatten(1).std(1)

    torch.testing.assert_close(deviation(combine([negative, positive], [9.0], 1.0)), deviation(positive))
    half = combine([negative, positive], [9.0], 0.5)
    torch.testing.assert_close(deviation(half), (deviation(positive) + deviation(guided)) / 2)
    assert torch.equal(combine([positive], [], 1.0), positive)


def test_inputs_of_the_network_for_each_side(tiny_composer):
    inputs = []

    def network(x, t, context, stc):
        inputs.append((x, t, context, stc))
        return torch.stack([torch.full_like(x[0], float(i)) for i in range(len(x))])

    text, negative = torch.ones(1, 77, 16), torch.zeros(1, 77, 16)
    stc = [Embedded(torch.ones(1, 8, 1, 4, 5), Schedule(0.5, 0.0, 0.5))]
    denoiser = GuidedDenoiser(network, text, negative, None, negative[:, :1], stc, 9.0, condition_guidance=3.0)
    x = gaussian(2, 4, 3, 4, 5)
    out = denoiser(x, torch.tensor(999))
    _, t, context, embedding = inputs.pop()
    assert context[:, 0, 0].tolist() == [0, 0, 0, 0, 1, 1] and t.tolist() == [999] * 6
    assert embedding[:, 0, 0, 0, 0].tolist() == [0, 0, 0.5, 0.5, 0.5, 0.5]
    assert out[:, 0, 0, 0, 0].tolist() == [0 + 3 * (2 - 0) + 9 * (4 - 2), 1 + 3 * (3 - 1) + 9 * (5 - 3)]
    denoiser(x, torch.tensor(100))  # after the condition's end, two sides remain
    assert inputs[0][2][:, 0, 0].tolist() == [0, 0, 1, 1] and inputs[0][3] is None


def test_condition_guidance_changes_only_the_effect_of_conditions(tiny_composer):
    motion = Condition("motion", gaussian(1, 2, 3, 32, 40))

    def video(*conditions, **settings):
        return composed(tiny_composer, "a", conditions=conditions, steps=3, **settings)

    assert torch.equal(video(motion), video(motion, condition_guidance=1.0))
    assert not torch.allclose(video(motion), video(motion, condition_guidance=4.0), atol=1e-3)
    assert torch.equal(video(), video(condition_guidance=4.0))
    assert not torch.equal(video(motion), video(motion, rescale=0.7))


# --- Batches and seeds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "eta"), [("dpmpp_2m", 0.0), ("ddim", 1.0), ("lcm", 0.0), ("euler", 0.0), ("ddim_released", 0.3)]
)
def test_each_video_of_a_batch_equals_the_one_composed_alone(tiny_composer, sampler, eta):
    motion, image = gaussian(2, 2, 3, 32, 40), torch.rand(1, 3, 1, 48, 60, generator=torch.Generator().manual_seed(1))
    style, video = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(2)), torch.rand(2, 3, 3, 32, 40)
    settings = {"sampler": sampler, "eta": eta, "steps": 3, "denoise": 0.7, "guidance": 3.0, "condition_guidance": 2.0}

    def videos(texts, seed, part):
        conditions = [Condition("motion", motion[part]), Condition("single_image", image)]
        inputs = {"style": Style(style[part]), "init": video[part], "conditions": conditions}
        return composed(tiny_composer, texts, seed=seed, **inputs, **settings)

    both = videos(["a red circle", "a blue square"], 7, slice(0, 2))
    assert both.shape == (2, 3, 3, 32, 40)
    torch.testing.assert_close(both[:1], videos("a red circle", 7, slice(0, 1)), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(both[1:], videos("a blue square", 8, slice(1, 2)), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(both[1:], videos("a blue square", 7, slice(1, 2)), atol=1e-2)


def test_one_text_for_several_videos(tiny_composer):
    three = composed(tiny_composer, "a", batch=3, steps=2, seed=2**63 - 3)
    assert len(three) == 3 and not torch.allclose(three[0], three[1], atol=1e-3)
    torch.testing.assert_close(three[2:], composed(tiny_composer, "a", steps=2, seed=2**63 - 1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("sampler", "eta"), [*((name, 0.0) for name in SAMPLERS), *((name, 1.0) for name in DDIMS)])
def test_the_noise_depends_only_on_the_seed(tiny_composer, sampler, eta):
    def video(seed):
        return composed(tiny_composer, "a", sampler=sampler, eta=eta, steps=4, seed=seed)

    first = video(1)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    assert torch.equal(first, video(1)) and not torch.equal(first, video(2))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("schedule", [{}, SHORT, {"steps": 120, "beta_end": 0.1}])
def test_the_timesteps_of_lcm_without_diffusers(schedule):
    config = DiffusionConfig(**schedule)
    for steps, denoise in ((4, 1.0), (4, 0.5), (1, 1.0), (7, 1.0), (33, 0.9), (50, 1.0), (51, 1.0), (60, 0.6)):
        expected = make_sampler(Sampling("lcm", steps, denoise), config).timesteps
        assert lcm_timesteps(config, steps, denoise).tolist() == expected.tolist()
    assert lcm_timesteps(DiffusionConfig(), 4).tolist() == [999, 759, 499, 259]


def test_new_noise_differs_from_the_first_noise():
    config, generator = DiffusionConfig(), torch.Generator().manual_seed(0)
    noise, inputs = draw_noise([generator], (4, 2, 16, 16)), []

    def nothing(x, t):  # noise whose clean latent is zero, so that the next input is only new noise
        inputs.append(x.flatten())
        return x / math.sqrt(1 - remaining_signal(config, t))

    sampler = make_sampler(Sampling("lcm", 2), config)
    sample(nothing, sampler.start(noise), sampler, [generator])
    assert inputs[1].std() > 0.5
    assert abs(torch.corrcoef(torch.stack(inputs))[0, 1]) < 0.1


# --- Progress -------------------------------------------------------------------------------------------------------


def test_progress_reports_each_stage(tiny_composer):
    reports = []
    motion = Condition("motion", torch.zeros(1, 2, 3, 32, 40))
    composed(tiny_composer, "a", conditions=[motion], steps=3, progress=lambda *report: reports.append(report))
    stages = [what for i, (what, _, _) in enumerate(reports) if i == 0 or reports[i - 1][0] != what]
    assert stages == ["encoding", "sampling", "decoding"]
    assert [report[1:] for report in reports if report[0] == "sampling"] == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("stage", ["encoding", "sampling", "decoding"])
def test_an_exception_from_progress_stops_at_once(tiny_composer, stage):
    reports = []

    class Cancelled(Exception):
        pass

    def progress(*report):
        reports.append(report)
        if report[0] == stage:
            raise Cancelled

    with pytest.raises(Cancelled):
        composed(tiny_composer, "a", init=torch.zeros(1, 3, 3, 32, 40), denoise=0.5, steps=3, progress=progress)
    assert reports[-1][0] == stage and [report[0] for report in reports].count(stage) == 1
