"""Conditions that were made for a video of one length and size, brought to another."""

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
    """A condition `(B, C, F, H, W)` for a video of `frames` frames and `size` (height, width).

    It is scaled to cover the checkpoint's `condition_size` and centre-cropped; frames are chosen evenly from first to
    last. Motion is spread over the new frames, so that things end where they did: in `pixels` its vectors grow with the
    video, in `source_pixels` they stay, and its map is resized without antialiasing, as the released path resizes it.

    Args:
        video: (height, width) of the video that it was made for; by default the one that a condition of this checkpoint
            and of its height and width is made for.
    """
    wanted = condition_size(name, size, extraction.condition_scale)
    if CONDITIONS[name].kind == "temporal" and tensor.shape[2] != frames:
        even = torch.linspace(0, tensor.shape[2] - 1, frames).round().long()
        tensor = _respaced(tensor, frames) if name == "motion" else tensor[:, :, even]
    there = tuple(tensor.shape[-2:])
    in_pixels = name == "motion" and extraction.motion_unit == "pixels"
    resized = tensor if there == wanted else resize_crop(tensor, wanted, antialias=name != "motion" or in_pixels)
    if in_pixels:  # of the video, not of the map
        growth = covering_scale(there, wanted) if video is None else covering_scale(video, size)
        return resized if growth == 1 else resized * growth
    if name == "mask" and there != wanted:
        keep = resized[:, 3:].round()
        return torch.cat([resized[:, :3] * keep, keep], dim=1)
    return resized


def _respaced(field: Tensor, frames: int) -> Tensor:
    """The same way in another number of frames: each takes the vectors of its time, as long as its share of it."""
    before = field.shape[2] - 1
    if frames == 1 or before == 0:
        return field[:, :, :1].expand(-1, -1, frames, -1, -1)
    share = before / (frames - 1)
    times = [0, *(max(1, min(before, math.ceil(i * share - 1e-6))) for i in range(1, frames))]
    return field[:, :, times] * share
