"""Adapt conditions to a video of another length and size."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..conditions import CONDITIONS, condition_size
from ..config import ExtractionConfig
from ..video.frames import covering_scale, resize_crop


def refit(
    name: str,
    tensor: Tensor,
    size: tuple[int, int],
    frames: int,
    extraction: ExtractionConfig,
    video: tuple[int, int] | None = None,
) -> Tensor:
    """Adapt a condition `(B, C, F, H, W)` to a video of `frames` frames and `size` (height, width).

    It is scaled to cover the checkpoint's `condition_size` and centre-cropped; frames are chosen evenly from first to
    last. Motion is spread over the new frames, so that objects end at the same places. Vectors in `pixels` grow with
    the video; vectors in `source_pixels` do not, and their map is resized without antialiasing, as in the released
    code.

    Args:
        video: (height, width) of the video that it was extracted for; by default the size that fits the tensor's height
            and width with this checkpoint.
    """
    expected = condition_size(name, size, extraction.condition_scale)
    if CONDITIONS[name].kind == "temporal" and tensor.shape[2] != frames:
        even = torch.linspace(0, tensor.shape[2] - 1, frames).round().long()
        tensor = _respaced(tensor, frames) if name == "motion" else tensor[:, :, even]
    current = tuple(tensor.shape[-2:])
    in_pixels = name == "motion" and extraction.motion_unit == "pixels"
    resized = tensor if current == expected else resize_crop(tensor, expected, antialias=name != "motion" or in_pixels)
    if in_pixels:  # of the video, not of the map
        growth = covering_scale(current, expected) if video is None else covering_scale(video, size)
        return resized if growth == 1 else resized * growth
    if name == "mask" and current != expected:
        keep = resized[:, 3:].round()
        return torch.cat([resized[:, :3] * keep, keep], dim=1)
    return resized


def _respaced(field: Tensor, frames: int) -> Tensor:
    """Spread a motion over another number of frames: the total displacement stays the same."""
    before = field.shape[2] - 1
    if frames == 1 or before == 0:
        return field[:, :, :1].expand(-1, -1, frames, -1, -1)
    ratio = before / (frames - 1)
    times = [0, *(max(1, min(before, math.ceil(i * ratio - 1e-6))) for i in range(1, frames))]
    return field[:, :, times] * ratio
