"""Pictures that the page fetches from ComfyUI's folder for temporary files."""

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
"""The most of an animation that is shown: the node is small, and what runs without a page has this written too."""
LEAST = 96
"""Pixels of its longer side at least: an older page shows pictures as large as they are."""


def animation(images: Tensor, rate: float) -> dict[str, Any]:
    """Images `(F, H, W, 3)` in [0, 1], `rate` a second, as one small picture that moves, for the page to show on the
    node that runs. Frames beyond `FRAMES` are left out evenly."""
    count, height, width = images.shape[:3]
    if count > FRAMES:
        images = images[torch.linspace(0, count - 1, FRAMES).round().long()]
    if (longer := max(height, width)) > SIDE:
        size = [max(1, round(side * SIDE / longer)) for side in (height, width)]
        images = torch.nn.functional.interpolate(images.movedim(-1, 1), size, mode="area").movedim(1, -1)
    elif (times := -(-LEAST // longer)) > 1:
        images = images.repeat_interleave(times, dim=1).repeat_interleave(times, dim=2)
    where, rate = ("VideoComposer_seen", io.FolderType.temp, None), rate * len(images) / count
    saved = ui.ImageSaveHelper.save_animated_webp(images, *where, rate, lossless=False, quality=80, method=0)
    return ui.SavedImages([saved], is_animated=len(images) > 1).as_dict()


def temporary(image: Tensor) -> dict[str, str]:
    """An image (H, W, 3 or 4) in [0, 1] as a file, as the page asks for files.

    It is named by its content: what is shown again is no other file, and no change of the workflow that names it.
    """
    pixels = (image.detach().float().clamp(0, 1) * 255).round().byte().cpu().numpy()
    name = f"videocomposer_{hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()[:24]}.png"
    folder = folder_paths.get_temp_directory()
    path = os.path.join(folder, name)
    if not os.path.exists(path):
        make_folder(folder)
        with written_beside(path) as part:  # a half of one would be shown for ever, as it is there
            Image.fromarray(pixels).save(part, "PNG", compress_level=1)
    return {"filename": name, "subfolder": "", "type": "temp"}
