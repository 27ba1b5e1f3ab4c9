"""What a condition looks like, on its node."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io, ui
from torch import Tensor

SIDE, FRAMES = 256, 64
"""The most that is shown: the node is small, and what runs without a page has this written too."""


def animation(images: Tensor, rate: float) -> dict[str, Any]:
    """Images `(F, H, W, 3)` in [0, 1] as one small picture that moves, for the page to show on the node that runs.

    It is a file in the folder for temporary ones. Frames beyond `FRAMES` are left out evenly.

    Args:
        rate: images a second.
    """
    count, height, width = images.shape[:3]
    if count > FRAMES:
        images = images[torch.linspace(0, count - 1, FRAMES).round().long()]
    if (longer := max(height, width)) > SIDE:
        size = [max(1, round(side * SIDE / longer)) for side in (height, width)]
        images = torch.nn.functional.interpolate(images.movedim(-1, 1), size, mode="area").movedim(1, -1)
    saved = ui.ImageSaveHelper.save_animated_webp(
        images, "VideoComposer_seen", io.FolderType.temp, None, rate * len(images) / count, lossless=False, quality=80,
        method=0,
    )  # fmt: skip
    return ui.SavedImages([saved], is_animated=len(images) > 1).as_dict()
