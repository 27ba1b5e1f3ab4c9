"""Masks: which pixels of a video are kept, and the masked video that the network sees."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError
from ..video import FramePlan, read_frames, read_image, resize_crop
from .sketch import as_sketch

_IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}


def read_mask(
    path: str | os.PathLike,
    plan: FramePlan | int,
    white: str = "paint",
    size: tuple[int, int] | None = None,
) -> Tensor:
    """A keep map (1, 1, F, H, W) of {0, 1}, 1 = keep, from an image or a video file.

    An image stands for every frame; a video mask needs the source's frame plan, so that both show the same moments
    (for an image, the number of frames will do). `white` says what the file's white means: "paint" (to be made
    anew) or "keep". Halfway grey and brighter counts as white; transparent counts as white. With `size` (h, w) it is
    scaled and centre-cropped as the source is. Raises UserError for another word or an unreadable file.
    """
    if white not in ("paint", "keep"):
        raise UserError(f'{path}: the mask\'s white {white!r} is unknown: say "paint" or "keep".')
    if Path(path).suffix.lower() in _IMAGES:
        frames = plan if isinstance(plan, int) else plan.frames
        picture = read_image(path)
        picture = (resize_crop(picture, size) if size else picture)[:, :, None].expand(-1, -1, frames, -1, -1)
    elif isinstance(plan, FramePlan):
        picture = read_frames(path, plan, size)
    else:
        raise UserError(
            f"{path}: is no image, and a mask video needs the frame plan of its source: "
            "give a .png, or the source video too."
        )
    bright = as_sketch(picture) >= 0.5 - 1e-4  # the weights of grey sum to 1 but for rounding
    return (bright if white == "keep" else ~bright).float()


def masked_video(video: Tensor, keep: Tensor) -> Tensor:
    """What the network sees of a mask: (B, 4, F, H, W), RGB in [-1, 1] times keep, then keep.

    video: (B, 3, F, H, W) in [0, 1]; keep: (B or 1, 1, F or 1, H, W), 1 = keep, 0 = to be painted.
    """
    if video.shape[-2:] != keep.shape[-2:]:
        raise ValueError(f"video and keep map differ in size: {tuple(video.shape)} and {tuple(keep.shape)}")
    keep = keep.to(video).expand(video.shape[0], 1, *video.shape[2:])
    return torch.cat([(video * 2 - 1) * keep, keep], dim=1)
