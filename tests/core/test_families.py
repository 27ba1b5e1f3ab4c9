"""Families of networks: recognized by their shapes, and composed with the settings that are assumed for them."""

import dataclasses
import json
from fractions import Fraction

import pytest
import torch

from vc_core import Condition, Sampling, Style, compose
from vc_core.checkpoint.conversion import convert
from vc_core.checkpoint.files import save_tensors
from vc_core.checkpoint.reading import read_checkpoint
from vc_core.checkpoint.released import to_released
from vc_core.config import Config, DiffusionConfig, ExtractionConfig, UNetConfig
from vc_core.diffusion.samplers import make_sampler, sample
from vc_core.errors import UserError
from vc_core.families import inferred_config, odd_settings, overridden
from vc_core.model.unet import UNet3D
from vc_core.video import VideoInfo, plan_frames

SMALL = UNetConfig(
    width=64, multipliers=(1, 2), res_blocks=1, attention_levels=(1,), context_dim=16, temporal_in_heads=1
)
FAMILIES = {
    "released": SMALL,
    "vgen": dataclasses.replace(SMALL, style_tokens=4),
    "text only": dataclasses.replace(SMALL, style_tokens=0, conditions=(), stc_channels=0),
}


@pytest.fixture(params=FAMILIES, scope="module")
def family(request, tmp_path_factory):
    """A family's name, a small network of it, and its file, which contains only tensors."""
    torch.manual_seed(0)
    unet = UNet3D(FAMILIES[request.param]).eval().requires_grad_(False)
    path = tmp_path_factory.mktemp("family") / "network.pth"
    save_tensors(path, to_released(unet))
    return request.param, unet, path


def test_the_family_is_recognized_by_shapes(family):
    name, unet, path = family
    checkpoint = read_checkpoint(path)
    config = checkpoint.config
    assert config.unet == unet.config
    assert len(checkpoint.assumed) == 1 and not checkpoint.extra
    vgen = name == "vgen"
    assert config.diffusion == (
        DiffusionConfig(prediction="v_prediction", zero_terminal_snr=True) if vgen else DiffusionConfig()
    )
    assert (config.width, config.height, config.rate) == ((448, 256, 3.0) if vgen else (256, 256, 8.0))
    assert config.extraction == (ExtractionConfig(condition_scale=8, sampling_rate=3.0) if vgen else ExtractionConfig())
    assert not config.few_steps and config.guidance == 9.0


def test_a_network_of_each_family_composes(family, tiny_composer, tiny_config):
    name, unet, path = family
    config = dataclasses.replace(tiny_config, unet=unet.config, diffusion=read_checkpoint(path).config.diffusion)
    composer = dataclasses.replace(tiny_composer, unet=unet, config=config)
    video = compose(composer, "a", sampling=Sampling(steps=2))
    assert video.shape == (1, 3, 3, 32, 40) and video.isfinite().all()
    style = Style(torch.rand(1, 3, 32, 32))
    image = Condition("single_image", torch.rand(1, 3, 1, 48, 60))
    if name == "text only":
        with pytest.raises(UserError, match="does not support 'single_image'"):
            compose(composer, "a", conditions=[image], sampling=Sampling(steps=2))
        with pytest.raises(UserError, match="does not support style"):
            compose(composer, "a", style=style, sampling=Sampling(steps=2))
    else:
        changed = [
            compose(composer, "a", sampling=Sampling(steps=2), **inputs)
            for inputs in ({"style": style}, {"conditions": [image]})
        ]
        assert all(not torch.equal(video, other) for other in changed)


@pytest.mark.parametrize("sampler", ["ddim_released", "ddim", "dpmpp_2m", "euler", "unipc", "lcm"])
def test_zero_terminal_snr_samples_from_noise_alone(sampler):
    """A network that always predicts the clean latent reaches it, although the first step's input is pure noise."""
    diffusion = DiffusionConfig(prediction="v_prediction", zero_terminal_snr=True)
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(1, 4, 3, 4, 5, generator=generator) for _ in range(2))

    def denoiser(x, t):
        between = t.double() % 1
        alpha = diffusion.alphas_cumprod[[int(t.floor()), int(t.ceil())]]
        alpha = alpha[0].lerp(alpha[1], between)
        remaining = (x.double() - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        return (alpha.sqrt() * remaining - (1 - alpha).sqrt() * clean).float()

    run = make_sampler(Sampling(sampler, 8), diffusion)
    assert run.timesteps[0] == (876 if sampler == "ddim_released" else 999)  # as released, 1 + 7 * 125
    result = sample(denoiser, run.start(noise), run, [generator])
    # The released loop ends at the first timestep, with 3 % of noise; between timesteps the levels are inexact.
    torch.testing.assert_close(result, clean, rtol=0, atol=0.15 if sampler == "ddim_released" else 0.01)


def test_the_users_settings_override_the_assumed_ones(family):
    _, _, path = family
    config = read_checkpoint(path, prediction="epsilon", size=(320, 576), frames=24, guidance=7.5).config
    assert config.diffusion == DiffusionConfig() and (config.height, config.width, config.frames) == (320, 576, 24)
    assert config.guidance == 7.5
    with pytest.raises(UserError, match="zero_terminal_snr"):
        read_checkpoint(path, prediction="epsilon", zero_terminal_snr=True)


def test_few_steps_set_their_sampler_and_no_guidance(family, tiny_composer, tiny_config):
    _, _, path = family
    config = read_checkpoint(path, few_steps=True).config
    assert (config.sampler, config.steps, config.guidance) == ("lcm", 4, 1.0)
    assert overridden(config, few_steps=False) == read_checkpoint(path).config
    assert overridden(config, few_steps=True, guidance=2.0).guidance == 2.0
    assert Config.from_json(config.to_json()) == config
    filled = Sampling(steps=6).filled(config)
    assert (filled.sampler, filled.steps, filled.guidance) == ("lcm", 6, 1.0)
    composer = dataclasses.replace(tiny_composer, config=dataclasses.replace(tiny_config, few_steps=True))
    steps = []
    compose(composer, "a", progress=lambda what, done, total: steps.append(total) if what == "sampling" else None)
    assert steps == [4] * 4


def test_keys_of_later_versions_are_written_only_if_they_differ_from_the_default():
    assert not {"few_steps", "style_tokens", "sampling_rate"} & set(str(json.loads(Config().to_json())).split("'"))
    config, _ = inferred_config(FAMILIES["vgen"])
    assert Config.from_json(config.to_json()) == config and '"style_tokens": 4' in config.to_json()


def test_a_clip_is_sampled_at_the_rate_of_the_checkpoint(tmp_path):
    info = VideoInfo(tmp_path, 64, 64, 600, Fraction(30), 20.0, "h264")
    assert plan_frames(info, 16).rate == 4 and plan_frames(info, 16, usual=3.0).rate == 3


@pytest.mark.parametrize(
    ("few_steps", "size", "steps", "guidance", "parts"),
    [
        (False, (256, 256), 50, 9.0, []),
        (False, (320, 576), 50, 9.0, []),  # ZeroScope's
        (False, (512, 584), 50, 9.0, ["584x512 is far from 256x256"]),
        (False, (112, 256), 50, 9.0, ["256x112 is far from 256x256"]),
        (True, (256, 256), 4, 1.0, []),
        (True, (256, 256), 20, 1.0, ["distilled for few steps"]),
        (True, (256, 256), 4, 9.0, ["distilled for few steps"]),
    ],
)
def test_settings_that_do_not_suit_a_checkpoint_are_reported(few_steps, size, steps, guidance, parts):
    warnings = list(odd_settings(Config(few_steps=few_steps), size, steps, guidance))
    assert len(warnings) == len(parts) and all(part in warning for part, warning in zip(parts, warnings, strict=True))


def test_lcm_on_a_network_of_many_steps_is_reported():
    (warning,) = odd_settings(Config(), (256, 256), 4, 1.0, "lcm")
    assert "set few_steps to yes" in warning
    assert not [*odd_settings(Config(few_steps=True), (256, 256), 4, 1.0, "lcm")]
    assert not [*odd_settings(Config(), (256, 256), 20, 9.0, "dpmpp_2m")]


def test_the_note_on_assumed_settings_excludes_the_users_own(family):
    name, _, path = family
    (plain,), (overriding,) = (read_checkpoint(path, few_steps=few).assumed for few in (None, True))
    assert ("VideoLCM has the same shapes" in plain) == (name == "vgen") and "same shapes" not in overriding
    assert overriding.endswith(". Your own settings apply for few_steps.")
    assert plain.split(". ")[0].rstrip(".") == overriding.split(". ")[0]


def test_a_pth_that_cannot_store_the_users_settings_is_refused(family, tmp_path):
    _, _, path = family
    for overrides in ({"size": (320, 576)}, {"frames": 24}, {"rate": 5.0}, {"guidance": 7.0}, {"few_steps": True}):
        with pytest.raises(UserError, match="cannot store this config"):
            convert(path, tmp_path / "x.pth", **overrides)
    assert not (tmp_path / "x.pth").exists()
    convert(path, tmp_path / "x.pth", frames=16, guidance=9.0, prediction=None)
    assert convert(path, tmp_path / "x.safetensors", size=(320, 576)).config.width == 576
