"""What sampling needs beside ComfyUI's own samplers: the released DDIM grid, and the core's context windows."""

from __future__ import annotations

from typing import Any

import comfy.context_windows
import comfy.samplers
import torch
from comfy.context_windows import ContextFuseMethod, ContextSchedule, IndexListContextHandler
from torch import Tensor

from ...vc_core.config import Config
from ...vc_core.diffusion.samplers import released_timesteps
from ...vc_core.diffusion.windows import Windows
from ...vc_core.errors import UserError

RELEASED = "ddim_released"
"""The scheduler of the released code: DDIM's timesteps 1, 1 + k, 1 + 2 k, ..., down to the schedule's first one."""


def released_sigmas(model_sampling: Any, config: Config, steps: int, denoise: float = 1.0) -> Tensor:
    """The noise levels of the released grid, the last of which is the schedule's least, not 0; none at a denoise of 0.

    Raises:
        UserError: a number of steps that the schedule does not have, or a schedule that is not the checkpoint's.
    """
    levels = model_sampling.sigmas.float()
    if len(levels) != config.diffusion.steps:
        raise UserError(
            f"The model's schedule was changed to {len(levels)} noise levels, and {RELEASED} is a grid of the "
            f"checkpoint's own {config.diffusion.steps}: choose another scheduler, or remove the node that changed it."
        )
    if denoise <= 0.0:
        return levels[:0]
    return torch.cat([levels[released_timesteps(config.diffusion, steps, denoise)], levels[:1]])


class ReleasedSampler(comfy.samplers.KSAMPLER):
    """A stock sampler on the released grid.

    The released loop differs from ComfyUI's in two things: it starts from noise of unit variance, though its first
    timestep is not the last of the schedule, and it decodes what it lands on, noise and all, without dividing it by
    the share of the signal.
    """

    def __init__(self, sampler: comfy.samplers.KSAMPLER, whole: bool):
        super().__init__(sampler.sampler_function, sampler.extra_options, sampler.inpaint_options)
        self.whole = whole

    def max_denoise(self, model_wrap: Any, sigmas: Tensor) -> bool:
        return self.whole

    def sample(self, model_wrap: Any, sigmas: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        landed = super().sample(model_wrap, sigmas, *args, **kwargs)
        return landed / (1 + sigmas[-1] ** 2) ** 0.5


class _Handler(IndexListContextHandler):
    """ComfyUI's windows for any number of videos: it looks up the one timestep of a step among the sigmas."""

    def execute(self, predict: Any, model: Any, conds: Any, x: Tensor, timestep: Tensor, options: Any) -> Any:
        def for_all(model: Any, conds: Any, x: Tensor, timestep: Tensor, options: Any) -> Any:
            return predict(model, conds, x, timestep.expand(len(x)), options)

        return super().execute(for_all, model, conds, x, timestep[:1], options)


def with_windows(model: Any, windows: Windows) -> Any:
    """A MODEL that denoises long videos window by window, as the core's `compose()` does."""

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
    handler.causal_window_fix = False  # newer versions' frame before each window is for networks that look back only
    model = model.clone()
    model.model_options["context_handler"] = handler
    comfy.context_windows.create_prepare_sampling_wrapper(model)  # memory for one window, not for the whole video
    return model
