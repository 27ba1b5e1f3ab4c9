"""A denoise mask: every place of an init video is denoised over its own part of the noise schedule."""

import pytest
import torch

from tests.composing import composed
from tests.core.test_sampling import MEAN, exact, gaussian
from vc_core import Sampling, UserError, Windows, compose
from vc_core.config import DiffusionConfig
from vc_core.diffusion.hold import Hold, reduced
from vc_core.diffusion.samplers import SAMPLERS, make_sampler, sample
from vc_core.pipeline import encode_video

FRAMES, SIZE = 4, (16, 16)
INIT = torch.rand(1, 3, FRAMES, *SIZE, generator=torch.Generator().manual_seed(5))


def mask_of(*fractions):
    """A mask with one fraction for each frame."""
    return torch.tensor(fractions).view(1, 1, -1, 1, 1).expand(-1, -1, -1, *SIZE)


def video(composer, *fractions, windows=None, **settings):
    settings = {"steps": 4, "guidance": 3.0, "windows": windows, **settings}
    kept = {"init": INIT, "denoise_mask": mask_of(*fractions)} if fractions else {}
    return composed(composer, "a red circle", frames=FRAMES, size=SIZE, seed=3, **settings, **kept)


@pytest.fixture(autouse=True)
def latents(monkeypatch):
    """`compose` returns latents: the tiny decoder's frames are nearly black."""
    monkeypatch.setattr("vc_core.encoders.autoencoder.decode", lambda autoencoder, latent, *_: latent)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_everywhere_is_plain_compose_to_the_bit(tiny_composer, sampler):
    assert torch.equal(video(tiny_composer, 1, 1, 1, 1, sampler=sampler), video(tiny_composer, sampler=sampler))


@pytest.mark.parametrize("windows", [None, Windows(2, 1)], ids=["entire", "windows"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_frames_with_zero_are_inits_latent_exactly(tiny_composer, sampler, windows):
    result = video(tiny_composer, 0, 1, 1, 0, sampler=sampler, windows=windows)
    kept = encode_video(tiny_composer, INIT, SIZE) / tiny_composer.config.autoencoder.scale
    assert torch.equal(result[:, :, [0, 3]], kept[:, :, [0, 3]])
    assert (result[:, :, 1:3] - kept[:, :, 1:3]).abs().amax((1, 3, 4)).min() > 0.01


def test_the_network_sees_the_kept_frames_noised_to_each_level(tiny_composer, monkeypatch):
    """So that the new frames can follow them from the first step on."""
    seen = []
    forward = tiny_composer.unet.forward

    def watched(x, t, *rest):
        seen.append((t[0], x[0]))
        return forward(x, t, *rest)

    monkeypatch.setattr(tiny_composer.unet, "forward", watched)
    video(tiny_composer, 0, 1, 1, 1, sampler="ddim", windows=Windows(FRAMES))
    latent = encode_video(tiny_composer, INIT, SIZE)[0]
    alphas = tiny_composer.config.diffusion.alphas_cumprod.float()
    noises = [(x[:, 0] - alphas[int(t)] ** 0.5 * latent[:, 0]) / (1 - alphas[int(t)]) ** 0.5 for t, x in seen]
    assert len(noises) == 4
    for noise in noises[1:]:
        torch.testing.assert_close(noise, noises[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_places_released_later_still_reach_the_data(sampler, prediction):
    """All samplers, those that remember earlier steps too, go from the held latent to the data."""
    config = DiffusionConfig(prediction=prediction)
    noise = gaussian(2, 4, 3, 8, 8)
    mask = torch.tensor([0.0, 0.4, 1.0]).view(1, 1, 3, 1, 1).expand(1, 1, 3, 8, 8)
    latent = torch.full_like(noise, 3.0)
    run = make_sampler(Sampling(sampler, 20), config)
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    hold = Hold(latent, noise, mask, config.steps)
    result = sample(exact(config, 0.0), run.start(noise), run, generators, hold=hold)
    assert torch.equal(result[:, :, 0], latent[:, :, 0])
    tolerance = 0.2 if sampler == "ddim_released" else 0.02
    torch.testing.assert_close(result[:, :, 1:], torch.full_like(result[:, :, 1:], MEAN), atol=tolerance, rtol=0)


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "unipc", "euler", "ddim"])
def test_released_places_follow_the_exact_path(sampler):
    """A held place stays on its own path, so that samplers that remember earlier steps are as accurate as others."""
    config, noise = DiffusionConfig(), gaussian(1, 4, 3, 8, 8)
    mask = torch.tensor([0.1, 0.4, 0.8]).view(1, 1, 3, 1, 1).expand(1, 1, 3, 8, 8)
    hold = Hold(torch.full_like(noise, 3.0), noise, mask, config.steps)

    def result(sampler, steps):
        run = make_sampler(Sampling(sampler, steps), config)
        return sample(exact(config, 0.5), run.start(noise), run, hold=hold)

    assert (result(sampler, 20) - result("ddim", 1000)).square().mean((0, 1, 3, 4)).sqrt().max() < 0.25


@pytest.mark.parametrize("sampler", [sampler for sampler in SAMPLERS if sampler != "lcm"])
def test_a_smaller_fraction_keeps_more_of_init(sampler):
    config, noise = DiffusionConfig(), gaussian(1, 4, 3, 16, 16)
    mask = torch.tensor([0.1, 0.4, 0.8]).view(1, 1, 3, 1, 1).expand(1, 1, 3, 16, 16)
    latent = torch.full_like(noise, 3.0)
    run = make_sampler(Sampling(sampler, 20), config)
    hold = Hold(latent, noise, mask, config.steps)
    result = sample(exact(config, 1.0), run.start(noise), run, hold=hold)
    small, middle, large = (result - latent).abs().mean((0, 1, 3, 4))
    assert small < middle / 1.5 < middle < large / 1.5


def test_steps_without_a_free_place_are_skipped(tiny_composer):
    steps = []
    video(tiny_composer, 0, 0.5, 0.5, 0, steps=8, sampler="ddim")

    def progress(what, done, total):
        if what == "sampling":
            steps.append(total)

    mask = mask_of(0, 0.5, 0.5, 0)
    compose(tiny_composer, init=INIT, denoise_mask=mask, sampling=Sampling("ddim", 8), size=SIZE, progress=progress)
    assert steps == [4, 4, 4, 4]
    steps.clear()
    compose(tiny_composer, init=INIT, denoise_mask=mask_of(0, 0, 0, 0), size=SIZE, progress=progress)
    assert not steps


def test_denoise_limits_the_mask(tiny_composer):
    def limited(*fractions):
        return video(tiny_composer, *fractions, denoise=0.5, sampler="ddim")

    assert torch.equal(limited(1, 1, 1, 1), limited(0.8, 0.6, 0.7, 0.9))
    assert not torch.equal(limited(1, 1, 1, 1), limited(1, 1, 0.1, 1))


def test_the_latent_has_the_mean_of_each_block():
    mask = torch.zeros(1, 1, 2, 16, 16)
    mask[:, :, 1, :8, :12] = 1.0
    assert torch.equal(reduced(mask)[0, 0], torch.tensor([[[0.0, 0.0], [0.0, 0.0]], [[1.0, 0.5], [0.0, 0.0]]]))


@pytest.mark.parametrize(
    ("init", "mask", "message"),
    [
        (None, mask_of(1, 1, 1, 1), "requires an init video"),
        (INIT, mask_of(1, 1, 1), r"\(1, 1, 3, 16, 16\)\. Expected a tensor \(batch, 1, 4, height, width\)"),
        (INIT, mask_of(1, 2, 1, 1), "outside 0 to 1"),
        (INIT, mask_of(1, 1, 1, 1).repeat(3, 1, 1, 1, 1), "'denoise_mask' has 3 items"),
    ],
)
def test_wrong_masks_are_refused(tiny_composer, init, mask, message):
    with pytest.raises(UserError, match=message):
        compose(tiny_composer, init=init, denoise_mask=mask, frames=FRAMES, size=SIZE)
