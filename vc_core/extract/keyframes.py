"""Frames of a video that are fixed before it is composed: keyframes, and the end of a video that is extended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..conditions import condition_size
from ..config import Config
from ..errors import UserError
from ..video import resize_crop
from .mask import masked_video

GREY = 0.5
"""What a draft shows in frames that are composed freely."""


@dataclass(frozen=True)
class Draft:
    """A video to start from, and how much of each place is composed; arguments of `compose`.

    Attributes:
        init: `(1, 3, F, H, W)` in [0, 1].
        mask: `(1, 1, F, H, W)` in [0, 1]: 0 keeps init, 1 is new, see `compose`.
    """

    init: Tensor
    mask: Tensor

    def mask_condition(self, size: tuple[int, int], config: Config) -> Tensor:
        """Return the mask condition `(1, 4, F, h, w)` that shows the kept places to the network."""
        keep = (self.mask == 0).float()
        return masked_video(self.init, keep, condition_size("mask", size, config.extraction.condition_scale))


def keyframes(images: Mapping[int, Tensor], frames: int, size: tuple[int, int]) -> Draft:
    """Return a draft of `frames` frames of `size` that keeps images at their places.

    Args:
        images: by index, each `(1, 3, H, W)` in [0, 1], scaled and centre-cropped to `size`. Negative indices count
            from the end: -1 is the last frame.

    Raises:
        UserError: see `positions`.
    """
    init = torch.full((1, 3, frames, *size), GREY)
    mask = torch.ones(1, 1, frames, *size)
    for place, image in zip(positions(list(images), frames), images.values(), strict=True):
        init[:, :, place] = resize_crop(image.float(), size)
        mask[:, :, place] = 0.0
    return Draft(init, mask)


def positions(indices: Sequence[int], frames: int, label: str = "keyframe") -> list[int]:
    """Return the frame numbers of indices, of which negative ones count from the end.

    Raises:
        UserError: an index outside the video, two indices of the same frame, or no frame left to compose.
    """
    numbers: dict[int, int] = {}
    for index in indices:
        if not -frames <= index < frames:
            raise UserError(
                f"{label} {index} is outside a video of {frames} frames. Use an index from {-frames} to {frames - 1}."
            )
        number = index % frames
        if number in numbers:
            both = f"{numbers[number]} and {index}" if numbers[number] != index else f"{index} twice"
            raise UserError(f"{label} {both}: both are frame {number} of {frames}. Use one image for each frame.")
        numbers[number] = index
    if len(numbers) == frames:
        raise UserError(f"All {frames} frames are set by {label}. Use fewer, or a longer video.")
    return [*numbers]
