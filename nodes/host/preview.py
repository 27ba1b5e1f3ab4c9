"""Previews of all frames while sampling, whichever sampler runs."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import comfy.patcher_extension
import latent_preview
import torch
from comfy.cli_args import LatentPreviewMethod, args
from PIL import Image
from torch import Tensor

EVENT = "videocomposer.preview"
"""The name of the message to the page, see `web/preview.js`."""


def preview_all_frames(patcher: Any) -> None:
    """Adds the previews to every sampling run of a MODEL."""
    patcher.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, "videocomposer", _outer_sample)


def _outer_sample(executor: Callable, noise: Any, latent: Any, sampler: Any, sigmas: Any, *args: Any, **kwargs: Any):
    """Puts a callback that shows all frames around the one that was given, (denoise_mask, callback, ...) in `args`."""
    model = executor.class_obj.model_patcher.model
    if "callback" in kwargs or len(args) < 2:
        kwargs["callback"] = with_preview(kwargs.get("callback"), model)
    else:
        args = (args[0], with_preview(args[1], model), *args[2:])
    return executor(noise, latent, sampler, sigmas, *args, **kwargs)


def with_preview(callback: Callable | None, model: Any) -> Callable:
    """A sampler's callback that sends a picture of all frames before it calls the given one."""

    def wrapped(step: int, denoised: Tensor, x: Tensor, total: int) -> None:
        if args.preview_method != LatentPreviewMethod.NoPreviews and denoised.ndim == 5:
            send(denoised, model.latent_format, model.videocomposer.rate)
        if callback is not None:
            callback(step, denoised, x, total)

    return wrapped


def send(latent: Tensor, latent_format: Any, rate: float) -> None:
    """Sends the frames of a latent `(B, 4, F, h, w)`, of its first video, to the page of whoever asked for it."""
    from comfy_execution.utils import get_executing_context
    from server import PromptServer

    context = get_executing_context()
    if context is None or PromptServer.instance is None:
        return
    strip, buffer = frames_strip(latent[0], latent_format), io.BytesIO()
    strip.save(buffer, "JPEG", quality=90)
    message = {
        "node": context.node_id,
        "frames": latent.shape[2],
        "rate": rate,
        "image": "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode(),
    }
    PromptServer.instance.send_sync(EVENT, message, PromptServer.instance.client_id)


def frames_strip(latent: Tensor, latent_format: Any) -> Image.Image:
    """The frames of a latent `(4, F, h, w)` side by side, a pixel for a latent position."""
    factors = torch.tensor(latent_format.latent_rgb_factors, device=latent.device, dtype=torch.float32)
    bias = latent_format.latent_rgb_factors_bias
    rgb = torch.einsum("cfhw,cr->fhwr", latent.float(), factors)
    rgb = rgb if bias is None else rgb + torch.tensor(bias, device=latent.device)
    return latent_preview.preview_to_image(torch.cat(list(rgb), dim=1))
