"""Previews of all frames during sampling, with any sampler."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import latent_preview
import torch
from PIL import Image
from torch import Tensor

EVENT = "videocomposer.preview"
"""The name of the message to the page, see `web/preview.js`."""
ROW = 4096
"""Largest width in pixels of a row of frames: JPEG and browsers limit the width of an image."""


def with_preview(callback: Callable | None, model: Any) -> Callable:
    """Wrap a sampler's callback so that it first sends an image of all frames.

    It ignores ComfyUI's preview method, which is none by default: the preview is cheap, and the page has its own
    setting.
    """

    def wrapped(step: int, denoised: Tensor, x: Tensor, total: int) -> None:
        if denoised.ndim == 5:
            send(denoised, model.latent_format, model.videocomposer.rate)
        if callback is not None:
            callback(step, denoised, x, total)

    return wrapped


def send(latent: Tensor, latent_format: Any, rate: float) -> None:
    """Send the frames of the first video of a latent `(B, 4, F, h, w)` to the page that started the run."""
    from comfy_execution.progress import get_progress_state
    from comfy_execution.utils import get_executing_context
    from server import PromptServer

    context, server = get_executing_context(), PromptServer.instance
    if context is None or server is None or server.client_id is None:
        return
    prompt = get_progress_state().dynprompt
    node = prompt.get_display_node_id(context.node_id)  # for a node that a loop created, the node that the page shows
    frames = latent.shape[2]
    columns = max(1, min(frames, ROW // latent.shape[4]))
    sheet, buffer = frames_sheet(latent[0], columns, latent_format), io.BytesIO()
    sheet.save(buffer, "JPEG", quality=90, subsampling=0)  # full colour resolution: a frame may be 8 pixels wide
    message = {
        "node": node,
        "type": prompt.get_node(node)["class_type"],
        "frames": frames,
        "columns": columns,
        "rate": rate,
        "image": "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode(),
    }
    server.send_sync(EVENT, message, server.client_id)


def frames_sheet(latent: Tensor, columns: int, latent_format: Any) -> Image.Image:
    """Draw the frames of a latent `(4, F, h, w)` in rows of `columns` frames, one pixel per latent position."""
    factors = torch.tensor(latent_format.latent_rgb_factors, device=latent.device, dtype=torch.float32)
    bias = latent_format.latent_rgb_factors_bias
    rgb = torch.einsum("cfhw,cr->fhwr", latent.float(), factors)
    rgb = rgb if bias is None else rgb + torch.tensor(bias, device=latent.device)
    rows = [torch.cat(list(row), dim=1) for row in rgb.split(columns)]
    rows[-1] = torch.nn.functional.pad(rows[-1], (0, 0, 0, rows[0].shape[1] - rows[-1].shape[1]))
    return latent_preview.preview_to_image(torch.cat(rows))
