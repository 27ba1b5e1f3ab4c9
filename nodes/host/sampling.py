"""Additions to ComfyUI's samplers: the timesteps of the released DDIM and LCM code, LCM's predictions, and the core's
context windows."""

from __future__ import annotations

from typing import Any

import comfy.context_windows
import comfy.model_sampling
import comfy.samplers
import torch
from comfy.context_windows import ContextFuseMethod, ContextSchedule, IndexListContextHandler
from comfy.k_diffusion.sampling import sample_lcm
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_model_advanced import ModelSamplingDiscreteDistilled
from torch import Tensor

from ...vc_core.config import Config, DiffusionConfig
from ...vc_core.diffusion.samplers import LCM_TIMESTEPS, lcm_scaling, lcm_timesteps, released_timesteps
from ...vc_core.diffusion.tiles import Tiles
from ...vc_core.diffusion.windows import Windows
from ...vc_core.errors import UserError
from .network import TILES

RELEASED = "ddim_released"
"""The scheduler of the released code: DDIM's timesteps ..., 1 + 2 k, 1 + k, 1, then the schedule's lowest noise."""

LCM_RELEASED = "lcm_released"
"""The scheduler of VideoLCM: about every 12th of the 50 timesteps of the distillation, 999, 759, 499 and 259 for 4
steps."""
GRIDS = (RELEASED, LCM_RELEASED)


def arranged(
    scheduler: str, sampler_name: str, model_sampling: Any, config: Config, steps: int, denoise: float
) -> tuple[comfy.samplers.KSAMPLER, Tensor]:
    """Return the sampler and the noise levels for a scheduler of `GRIDS`; there are no levels if denoise is 0.

    Raises:
        UserError: the schedule has fewer steps than requested, or is not the checkpoint's.
    """
    sampler = comfy.samplers.sampler_object(sampler_name)
    levels, total = model_sampling.sigmas.float(), config.diffusion.steps
    if scheduler == RELEASED:
        sampler = ReleasedSampler(sampler, from_noise=denoise >= 1.0)
        if len(levels) != total:
            raise UserError(
                f"The scheduler {RELEASED} requires a schedule of {total} noise levels, but the model's schedule has "
                f"{len(levels)}. Choose another scheduler, remove the node that changed the schedule, or set "
                "few_steps to 'no' on the loader."
            )
    elif sampler_name == "lcm":
        sampler = comfy.samplers.KSAMPLER(_sample_lcm)
    if denoise <= 0.0:
        return sampler, levels[:0]
    if scheduler == RELEASED:  # the last level is the schedule's lowest, not 0
        return sampler, torch.cat([levels[released_timesteps(config.diffusion, steps, denoise)], levels[:1]])
    timesteps = lcm_timesteps(config.diffusion, steps, denoise) + 1  # `levels` may only have the distillation's
    return sampler, torch.cat([levels[(timesteps * len(levels) // total - 1).clamp(min=0)], levels.new_zeros(1)])


def _sample_lcm(model: Any, x: Tensor, sigmas: Tensor, extra_args: dict[str, Any], **settings: Any) -> Tensor:
    """Sample with ComfyUI's LCM, but with the core's noise: the generator continues after the initial noise.

    ComfyUI's own noise depends on the device. In older versions on the CPU it repeats the initial noise.
    """
    generator = torch.Generator().manual_seed(extra_args["seed"])
    torch.randn(x.shape, generator=generator)

    def fresh(*levels: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=generator).to(x)

    return sample_lcm(model, x, sigmas, extra_args, noise_sampler=fresh, **settings)


def distilled_sampling(model_config: Any, config: DiffusionConfig) -> Any:
    """Return the model sampling of ComfyUI's ModelSamplingDiscrete "lcm", for networks that predict noise or v: the
    distillation's timesteps, and LCM's boundary condition (arXiv 2310.04378, equation 9)."""
    prediction = {"epsilon": comfy.model_sampling.EPS, "v_prediction": comfy.model_sampling.V_PREDICTION}

    class Distilled(ModelSamplingDiscreteDistilled, prediction[config.prediction]):
        original_timesteps = config.steps if config.steps % LCM_TIMESTEPS else LCM_TIMESTEPS

        def calculate_denoised(self, sigma: Tensor, model_output: Tensor, model_input: Tensor) -> Tensor:
            denoised = super().calculate_denoised(sigma, model_output, model_input)
            at, sigma = (comfy.model_sampling.reshape_sigma(v, denoised.ndim) for v in (self.timestep(sigma), sigma))
            scaled = lcm_scaling(config) * at
            skip, out = 0.25 / (scaled**2 + 0.25), scaled / (scaled**2 + 0.25) ** 0.5
            return out * denoised + skip * model_input / (sigma**2 + 1) ** 0.5

    return Distilled(model_config)


class ReleasedSampler(comfy.samplers.KSAMPLER):
    """A stock sampler on the released timesteps.

    The released loop differs from ComfyUI's in two ways. It starts from noise of unit variance although its first
    timestep is not the schedule's last. And it decodes its last latent, which is still noisy, without dividing it by
    the signal's amplitude.

    Args:
        from_noise: whether the run starts from pure noise, not from a given latent.
    """

    def __init__(self, sampler: comfy.samplers.KSAMPLER, from_noise: bool):
        super().__init__(sampler.sampler_function, sampler.extra_options, sampler.inpaint_options)
        self.from_noise = from_noise

    def max_denoise(self, model_wrap: Any, sigmas: Tensor) -> bool:
        return self.from_noise

    def sample(
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        last = super().sample(model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar)
        last = last / (1 + sigmas[-1] ** 2) ** 0.5
        # What a noise mask keeps is not noisy.
        return last if denoise_mask is None else torch.where(denoise_mask == 0, latent_image, last)


class _Handler(IndexListContextHandler):
    """ComfyUI's windows for any number of videos: the base class only accepts a single timestep."""

    def execute(self, predict: Any, model: Any, conds: Any, x: Tensor, timestep: Tensor, options: Any) -> Any:
        def for_all(model: Any, conds: Any, x: Tensor, timestep: Tensor, options: Any) -> Any:
            return predict(model, conds, x, timestep.expand(len(x)), options)

        return super().execute(for_all, model, conds, x, timestep[:1], options)


def with_tiles(model: Any, tiles: Tiles) -> Any:
    """Return a MODEL that predicts large frames tile by tile, like the core's `Sampling.tiles`."""
    model = model.clone()
    model.model_options["transformer_options"][TILES] = tiles

    def for_a_tile(executor: Any, model: Any, noise_shape: Any, *args: Any, **kwargs: Any) -> Any:
        shape = (*noise_shape[:-2], *tiles.within(*noise_shape[-2:]))  # memory for a tile, not for entire frames
        return executor(model, list(shape), *args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, TILES, for_a_tile)
    return model


def windows_of(config: Config, length: int, overlap: int) -> Windows:
    """Return the windows that the inputs `context_length` and `context_overlap` describe."""
    return Windows(length or config.frames, None if overlap < 0 else overlap)


def in_windows(model: Any, windows: Windows, frames: int) -> Any:
    """Return a MODEL that denoises a video of more frames than a window window by window, like the core's `compose()`.
    A MODEL with ComfyUI's own context windows keeps them."""
    if frames <= windows.length or "context_handler" in model.model_options:
        return model

    def spans(frames: int, *args: Any) -> list[list[int]]:
        return [list(range(span.start, span.stop)) for span in windows.spans(frames)]

    def weights(length: int, full_length: int, idxs: list[int], **kwargs: Any) -> list[float]:
        position = spans(full_length).index(list(idxs))
        return windows.weights(full_length)[position].tolist()

    handler = _Handler(
        ContextSchedule("videocomposer", spans),
        ContextFuseMethod("videocomposer", weights),
        context_length=windows.length,
        context_overlap=windows.overlap,
        dim=2,
    )
    handler.causal_window_fix = False  # the extra frame of newer versions is for networks that only look back
    model = model.clone()
    model.model_options["context_handler"] = handler
    comfy.context_windows.create_prepare_sampling_wrapper(model)  # memory for one window, not for the entire video
    return model
