"""The objective: schedule, target and weights compared with diffusers; frequencies of dropout; random values per
sample."""

from dataclasses import replace

import pytest
import torch

from training.objective import (
    NAMES,
    Objective,
    draw_kept,
    draw_noise,
    draw_timesteps,
    embed_conditions,
    keep_for,
    kept_of,
    make_context,
    moving_weight,
    possible_in,
    snr_weights,
)
from training.recipe import Domain, Loss, Recipe
from training.start import initialise
from vc_core.conditions import CONDITIONS
from vc_core.config import DiffusionConfig, UNetConfig
from vc_core.model.unet import UNet3D

ZERO_SNR = DiffusionConfig(prediction="v_prediction", zero_terminal_snr=True)
PREDICTIONS = ["epsilon", "v_prediction"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def chi_square(observed, expected):
    """Return the probability of frequencies that differ at least as much from the expected ones."""
    statistic = ((observed - expected).square() / expected).sum()
    degrees = torch.tensor(len(observed) - 1.0, dtype=statistic.dtype)
    return torch.special.gammaincc(degrees / 2, statistic / 2).item()


# --- Dropout --------------------------------------------------------------------------------------------------------


def test_every_pattern_of_dropout_has_its_frequency():
    count, names = 8_000, ("text", "style", "motion", "depth", "mask", "single_image")
    kept = kept_of(range(count), 3, Loss())
    pattern = sum(kept[name].long() << i for i, name in enumerate(names))
    observed = torch.bincount(pattern, minlength=2 ** len(names)).double()
    expected = torch.full_like(observed, 0.8 / 2 ** len(names))
    expected[0] += 0.1
    expected[-1] += 0.1
    assert chi_square(observed, expected * count) > 0.001
    assert (
        chi_square(observed, torch.full_like(observed, count / len(observed))) < 1e-9
    )  # and the test has enough power


def test_the_dropout_of_a_sample_depends_only_on_its_number():
    together = kept_of([7, 8, 9], 0, Loss())
    apart = [kept_of([number], 0, Loss()) for number in (7, 8, 9)]
    for name in NAMES:
        assert torch.equal(together[name], torch.cat([kept[name] for kept in apart]))
    assert any(not torch.equal(keep, kept_of([7, 8, 9], 1, Loss())[name]) for name, keep in together.items())


def test_the_released_rule_counts_by_batches():
    kept = torch.stack(list(kept_of(range(20_000), 0, Loss(dropout="released")).values()))
    assert kept.all(0).float().mean() == pytest.approx(0.1 + 0.8 * 0.375**8, abs=0.01)
    assert (~kept).all(0).float().mean() == pytest.approx(0.1 + 0.8 * 0.625**8, abs=0.01)
    mixed = kept[:, kept.any(0) & ~kept.all(0)]
    assert mixed.float().mean() == pytest.approx(0.375 * 0.8 / (0.8 - 0.8 * 0.625**8), abs=0.01)
    loss = Loss(dropout="released")
    singles = torch.stack([torch.stack(list(kept_of([n], 0, loss).values())) for n in range(1500)], 1)
    assert singles.float().mean() == pytest.approx(0.09 + 0.81 * 0.5, abs=0.02)  # dropping all comes before keeping all


def test_stage_1_drops_only_text():
    kept = kept_of(
        range(8000), 0, Loss(text_dropout=0.1), stage=1, possible=possible_in(Recipe(stage=1), Domain(), NAMES)
    )
    dropped = (~kept["text"]).sum().double()
    assert chi_square(torch.stack([dropped, 8000 - dropped]), torch.tensor([800.0, 7200.0]).double()) > 0.001
    assert not any(kept[name].any() for name in NAMES if name != "text")
    assert kept_of(range(50), 0, Loss(), stage=1)["text"].all()


def test_conditions_that_are_not_possible_are_dropped():
    assert possible_in(Recipe(), Domain(frames=1), ("text", "style", "motion", "depth")) == {"text", "style", "depth"}
    kept = kept_of(
        range(200), 0, Loss(), possible=possible_in(Recipe(), Domain(), ("text", "style", "depth", "motion"))
    )
    assert kept["motion"].any() and kept["style"].any() and not kept["sketch"].any()


def test_a_domain_drops_what_is_in_its_without():
    recipe = Recipe(data=(Domain(without=("depth", "text")), Domain()), seed=3)
    first, second = (keep_for(recipe, domain, NAMES)(range(100)) for domain in recipe.data)
    for name in NAMES:
        assert torch.equal(first[name], torch.zeros(100).bool() if name in ("depth", "text") else second[name]), name
    assert second["depth"].any() and second["text"].any()


def test_motion_alone_more_often():
    kept = draw_kept(40_000, generator(), {"motion": 0.5})
    table = torch.stack(list(kept.values()))
    expected = 0.1 + 0.8 * 0.5 * 0.5 ** len(NAMES)
    assert (~table).all(0).float().mean() == pytest.approx(expected, abs=0.01)
    assert table.all(0).float().mean() == pytest.approx(expected, abs=0.01)
    alone = kept["motion"] & ~kept["depth"] & ~kept["sketch"] & ~kept["mask"]
    assert alone.float().mean() == pytest.approx(0.8 * (0.5 + 0.5 / 16), abs=0.01)
    assert kept["text"].float().mean() == pytest.approx(0.5, abs=0.02)


def test_text_alone_more_often():
    kept = draw_kept(40_000, generator(), {"text": 0.3})
    alone = kept["text"] & ~torch.stack([kept[name] for name in CONDITIONS]).any(0)
    assert alone.float().mean() == pytest.approx(0.8 * (0.3 + 0.7 * 0.5 * 0.5 ** len(CONDITIONS)), abs=0.01)
    assert kept["style"].float().mean() == pytest.approx(0.5, abs=0.02)  # style may be kept with it


def test_a_still_alone_more_often():
    plain, kept = (draw_kept(40_000, generator(), lone) for lone in ({}, {"motion": 0.3, "single_sketch": 0.2}))
    alone = kept["single_sketch"] & ~torch.stack([kept[n] for n in CONDITIONS if n != "single_sketch"]).any(0)
    assert alone.float().mean() == pytest.approx(0.8 * (0.2 + 0.5 / 2**6), abs=0.01)
    assert all(torch.equal(plain[name], kept[name]) for name in ("text", "style"))
    assert kept["single_image"].float().mean() == pytest.approx(0.1 + 0.8 * 0.8 * 0.5, abs=0.01)


# --- Timesteps and noise --------------------------------------------------------------------------------------------


def test_timesteps_are_uniform_and_those_of_neighbours_far_apart():
    steps = draw_timesteps(0, range(10_000), 1000)
    assert chi_square(torch.bincount(steps // 50, minlength=20).double(), torch.full((20,), 500.0).double()) > 0.001
    assert (steps.min(), steps.max()) == (0, 999)
    for start in range(0, 800, 8):  # any eight consecutive ones cover all quarters of the schedule
        quarters = torch.bincount(steps[start : start + 8] // 250, minlength=4)
        assert quarters.min() >= 1
    assert torch.equal(draw_timesteps(0, [17], 1000), steps[17:18])
    assert not torch.equal(draw_timesteps(1, range(100), 1000), steps[:100])


def test_noise_depends_only_on_the_sample():
    noise = draw_noise(0, [4, 9], (4, 2, 8, 8))
    assert torch.equal(noise[1:], draw_noise(0, [9], (4, 2, 8, 8)))
    assert not torch.equal(noise[0], noise[1])
    assert draw_noise(0, range(40), (4, 2, 8, 8)).std() == pytest.approx(1.0, abs=0.02)


def test_offset_noise_is_constant_over_a_frame():
    plain, offset = (draw_noise(0, range(60), (4, 2, 4, 4), strength) for strength in (0.0, 0.5))
    added = offset - plain
    torch.testing.assert_close(added, added[..., :1, :1].expand_as(added), rtol=0, atol=1e-6)
    assert added[..., 0, 0].std() == pytest.approx(0.5, abs=0.05)
    assert not torch.equal(added[:, :, 0], added[:, :, 1])


# --- Schedule, target, weights --------------------------------------------------------------------------------------


def ddpm(**settings):
    from diffusers import DDPMScheduler

    return DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear", **settings)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_noising_is_that_of_diffusers(prediction):
    latents, noise, t = torch.randn(4, 4, 2, 4, 4), torch.randn(4, 4, 2, 4, 4), torch.tensor([0, 1, 500, 999])
    noisy, target = Objective(DiffusionConfig(prediction=prediction)).noised(latents, noise, t)
    torch.testing.assert_close(noisy, ddpm().add_noise(latents, noise, t), rtol=1e-5, atol=1e-5)
    expected = noise if prediction == "epsilon" else ddpm().get_velocity(latents, noise, t)
    torch.testing.assert_close(target, expected, rtol=1e-5, atol=1e-5)


def test_the_zero_terminal_schedule_is_that_of_diffusers():
    ours = ZERO_SNR.alphas_cumprod
    assert ours[-1] < 1e-7
    torch.testing.assert_close(ours.float(), ddpm(rescale_betas_zero_snr=True).alphas_cumprod, rtol=1e-4, atol=1e-6)


def test_zero_terminal_snr_trains_on_pure_noise_at_the_end():
    latents, noise = torch.randn(1, 4, 2, 4, 4), torch.randn(1, 4, 2, 4, 4)
    noisy, target = Objective(ZERO_SNR).noised(latents, noise, torch.tensor([999]))
    torch.testing.assert_close(noisy, noise, rtol=0, atol=2e-3)
    torch.testing.assert_close(target, -latents, rtol=0, atol=2e-3)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_min_snr_weights_are_those_of_the_paper(prediction):
    alphas = ddpm().alphas_cumprod
    snr = alphas / (1 - alphas)
    weights = snr_weights(DiffusionConfig().alphas_cumprod, prediction, 5.0)
    expected = snr.clamp(max=5.0) / (snr if prediction == "epsilon" else snr + 1)
    torch.testing.assert_close(weights.float(), expected, rtol=1e-3, atol=1e-5)


def test_min_snr_weights_count_pure_noise():
    alphas = ZERO_SNR.alphas_cumprod
    weights = snr_weights(alphas, "v_prediction", 5.0)
    assert torch.isfinite(weights).all() and weights[-1] == 1.0


def test_the_loss_of_each_sample_is_weighted_by_its_timestep():
    objective = Objective(DiffusionConfig(), Loss(min_snr_gamma=5.0))
    prediction, target = torch.zeros(2, 4, 1, 2, 2), torch.ones(2, 4, 1, 2, 2)
    t = torch.tensor([10, 900])
    losses = objective.losses(prediction, target, target, t)
    torch.testing.assert_close(losses, objective.weights[t])
    assert losses[0] < 0.1 and losses[1] == 1.0
    assert torch.equal(Objective(DiffusionConfig()).losses(prediction, target, target, t), torch.ones(2))


def test_moving_content_weighs_more():
    latents = torch.zeros(1, 4, 3, 4, 4)
    for frame in range(3):
        latents[:, :, frame, :, frame] = 1.0  # an object that moves to the right
    weight = moving_weight(latents, 6.0)
    assert weight.mean() == pytest.approx(1.0)
    for frame in range(3):  # the first frame too
        assert weight[0, 0, frame, 0, frame] == pytest.approx(7 * weight[0, 0, frame, 3, 3].item())
        assert weight[0, 0, frame, 0, (frame + 1) % 3] == weight[0, 0, frame, 3, 3]
    assert torch.equal(moving_weight(torch.ones(1, 4, 3, 4, 4), 6.0), torch.ones(1, 1, 3, 4, 4))
    error = torch.zeros(1, 4, 3, 4, 4)
    error[:, :, 2, 0, 2] = 1.0
    plain, moving = (
        Objective(DiffusionConfig(), Loss(moving_gain=gain)).losses(error, 0 * error, latents, torch.tensor([5]))
        for gain in (0.0, 6.0)
    )
    torch.testing.assert_close(moving, plain * weight[0, 0, 2, 0, 2])


# --- Conditions and tokens ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    net = UNet3D(
        UNetConfig(width=32, multipliers=(1, 2), res_blocks=1, attention_levels=(0,), head_dim=16,
                   temporal_in_heads=1, context_dim=64, dropout=0.0, stc_dropout=0.0)
    )  # fmt: skip
    initialise(net)
    return net


def test_a_new_network_predicts_zero(unet):
    x = torch.randn(2, 4, 2, 4, 4)
    context = make_context(
        unet, torch.randn(2, 77, 64), torch.randn(1, 77, 64), torch.randn(2, 1, 64),
        {"text": torch.tensor([True, True]), "style": torch.tensor([True, True])},
    )  # fmt: skip
    assert torch.equal(unet(x, torch.tensor([5, 500]), context), torch.zeros_like(x))


def test_dropped_conditions_add_nothing(unet):
    rows = {"motion": torch.tensor([1])}
    motion = torch.randn(1, 2, 4, 32, 32)
    total = embed_conditions(unet, {"motion": motion}, rows, 3, (4, 4), 4)
    assert torch.equal(total[0], torch.zeros_like(total[0])) and torch.equal(total[2], total[0])
    torch.testing.assert_close(total[1:2], unet.encode_condition("motion", motion, (4, 4)))
    unweighted = embed_conditions(unet, {"motion": motion}, rows, 3, (4, 4), 4, {"motion": torch.zeros(1)})
    assert not unweighted.any()


def test_dropped_tokens_are_the_empty_prompt_and_encoded_zeros(unet):
    text, empty, style = torch.randn(2, 77, 64), torch.randn(1, 77, 64), torch.randn(2, 1, 64)
    kept = {"text": torch.tensor([True, False]), "style": torch.tensor([False, True])}
    context = make_context(unet, text, empty, style, kept)
    assert torch.equal(context[0, :77], text[0]) and torch.equal(context[1, :77], empty[0])
    torch.testing.assert_close(context[0:1, 77:], unet.encode_style(torch.zeros(1, 1, 64)))
    torch.testing.assert_close(context[1:2, 77:], unet.encode_style(style[1:2]))
    assert make_context(unet, text, empty, None, kept).shape == (2, 77, 64)


def test_networks_with_several_style_tokens_and_without_any(unet):
    four = UNet3D(replace(unet.config, style_tokens=4))
    text, empty, style = torch.randn(2, 77, 64), torch.randn(1, 77, 64), torch.randn(2, 1, 64)
    kept = {"text": torch.tensor([True, False]), "style": torch.tensor([False, True])}
    context = make_context(four, text, empty, style, kept)
    assert context.shape == (2, 81, 64)
    torch.testing.assert_close(context[0:1, 77:], four.encode_style(torch.zeros(1, 1, 64)))
    torch.testing.assert_close(context[1:2, 77:], four.encode_style(style[1:2]))
    alone = replace(unet.config, style_tokens=0, conditions=(), stc_channels=0)
    assert possible_in(Recipe(), Domain(), alone.inputs) == {"text"}
    assert not keep_for(Recipe(), Domain(), alone.inputs)(range(20))["style"].any()
