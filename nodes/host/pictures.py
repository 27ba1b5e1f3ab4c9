"""Images that the page loads from ComfyUI's temporary folder."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import folder_paths
import torch
from comfy_api.latest import io, ui
from PIL import Image
from torch import Tensor

from ...vc_core.disk import make_folder, written_beside

SIDE, FRAMES = 256, 64
"""Largest side in pixels and largest number of frames of an animation: nodes are small, and every run writes one."""
LEAST = 96
"""Smallest longer side in pixels: older pages do not enlarge images."""


def animation(images: Tensor, rate: float) -> dict[str, Any]:
    """Save images `(F, H, W, 3)` in [0, 1] as a small animation for the page to show on the node.

    It has at most `FRAMES` frames, evenly selected, and lasts as long as all frames at `rate` frames per second.
    """
    count, height, width = images.shape[:3]
    if count > FRAMES:
        images = images[torch.linspace(0, count - 1, FRAMES).round().long()]
    if (longer := max(height, width)) > SIDE:
        size = [max(1, round(side * SIDE / longer)) for side in (height, width)]
        images = torch.nn.functional.interpolate(images.movedim(-1, 1), size, mode="area").movedim(1, -1)
    elif (times := -(-LEAST // longer)) > 1:
        images = images.repeat_interleave(times, dim=1).repeat_interleave(times, dim=2)
    file, rate = ("VideoComposer_seen", io.FolderType.temp, None), rate * len(images) / count
    saved = ui.ImageSaveHelper.save_animated_webp(images, *file, rate, lossless=False, quality=80, method=0)
    return ui.SavedImages([saved], is_animated=len(images) > 1).as_dict()


def temporary(image: Tensor) -> dict[str, str]:
    """Save an image (H, W, 3 or 4) in [0, 1] as a temporary file, and return the entry by which the page loads it.

    The file's name is a hash of its content, so the same image does not change the workflow that names it.
    """
    pixels = (image.detach().float().clamp(0, 1) * 255).round().byte().cpu().numpy()
    name = f"videocomposer_{hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()[:24]}.png"
    folder = folder_paths.get_temp_directory()
    path = os.path.join(folder, name)
    if not os.path.exists(path):
        make_folder(folder)
        with written_beside(path) as part:  # a partial file would never be replaced
            Image.fromarray(pixels).save(part, "PNG", compress_level=1)
    return {"filename": name, "subfolder": "", "type": "temp"}
