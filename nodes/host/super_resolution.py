"""SR600's sampling in ComfyUI: inversion on one noise schedule, then denoising on another, see the core's
`diffusion.super_resolution`."""

from __future__ import annotations

from typing import Any

import comfy.model_sampling
import comfy.sample
import comfy.samplers
import torch
from torch import Tensor

from ...vc_core.diffusion.guidance import combine
from ...vc_core.diffusion.super_resolution import (
    denoising_schedule,
    denoising_sigmas,
    denoising_timesteps,
    inversion_schedule,
    inversion_timesteps,
)


class _Levels(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.V_PREDICTION):
    """A model sampling with the noise levels of any alphas_cumprod. VGen converts v at the rounded timestep."""

    def __init__(self, alphas_cumprod: Tensor):
        super().__init__()
        self.set_sigmas(((1 - alphas_cumprod) / alphas_cumprod).sqrt().float())

    def calculate_denoised(self, sigma: Tensor, model_output: Tensor, model_input: Tensor) -> Tensor:
        alpha, noise, x = self.scaled(sigma, model_input)
        return alpha * x - noise * model_output

    def scaled(self, sigma: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the factors of the signal and of the noise at the rounded timestep, and x with unit variance."""
        rounded = self.sigmas[self.timestep(sigma)].to(sigma)
        level, sigma = (comfy.model_sampling.reshape_sigma(s, x.ndim) for s in (rounded, sigma))
        total = (1 + level**2) ** 0.5
        return 1 / total, level / total, x / (1 + sigma**2) ** 0.5


def _inverted(model: Any, x: Tensor, sigmas: Tensor, extra_args: Any, callback: Any, disable: Any) -> Tensor:
    """Go up to the last noise level by DDIM. Takes a clean latent, and returns a noisy one of unit variance."""
    x = x * (1 + sigmas[0] ** 2) ** 0.5
    for i in range(len(sigmas) - 1):
        clean = model(x, sigmas[i].expand(len(x)), **extra_args)
        callback({"i": i, "denoised": clean, "x": x})
        x = clean + sigmas[i + 1] / sigmas[i] * (x - clean)
    return x / (1 + sigmas[-1] ** 2) ** 0.5


class _Inversion(comfy.samplers.KSAMPLER):
    """A sampler that begins at the latent itself."""

    def __init__(self) -> None:
        super().__init__(_inverted)

    def max_denoise(self, model_wrap: Any, sigmas: Tensor) -> bool:
        return False


def super_resolved(
    model: Any, positive: Any, negative: Any, latent: Tensor, steps: int, levels: int, cfg: float, rescale: float,
    **shared: Any,
) -> Tensor:  # fmt: skip
    """Return the latent of a sharper video, from the latent `(B, 4, F, h, w)` of an enlarged one.

    Args:
        steps, levels, cfg, rescale: as in `vc_core.upscaling.upscale`.
        shared: further arguments of `comfy.sample.sample_custom`.
    """
    ascending = _patched(model, _Levels(inversion_schedule()))
    levels_up = ascending.get_model_object("model_sampling").sigmas[inversion_timesteps(steps, levels)]
    zeros = torch.zeros_like(latent)
    noisy = comfy.sample.sample_custom(
        ascending, zeros, 1.0, _Inversion(), levels_up, negative, negative, latent, **shared
    )
    sampling = _Levels(denoising_schedule())
    descending = _patched(model, sampling)
    descending.set_model_sampler_cfg_function(lambda args: _guided(sampling, rescale, args))
    sigmas = torch.tensor([*denoising_sigmas(denoising_timesteps(steps, levels)), 0.0]).float()
    solver = comfy.samplers.sampler_object("dpmpp_2m")
    noise = model.model.process_latent_in(noisy)
    return comfy.sample.sample_custom(descending, noise, cfg, solver, sigmas, positive, negative, zeros, **shared)


def _patched(model: Any, sampling: _Levels) -> Any:
    model = model.clone()
    model.add_object_patch("model_sampling", sampling)
    return model


def _guided(sampling: _Levels, rescale: float, args: dict[str, Any]) -> Tensor:
    """Guide v as the core does. ComfyUI's RescaleCFG computes other deviations for 5-D latents."""
    alpha, noise, x = sampling.scaled(args["sigma"], args["input"])
    sides = [(alpha * x - args[name]) / noise for name in ("uncond_denoised", "cond_denoised")]
    v = combine(sides, [args["cond_scale"]], rescale)
    return args["input"] - (alpha * x - noise * v)
