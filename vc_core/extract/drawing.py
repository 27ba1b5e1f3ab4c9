"""What hand-made motion and masks share: a canvas to draw on, shapes on it, and easing.

Whoever draws does so on a canvas of their own, in its pixels: x from 0 at its left edge to its width at the right,
y downwards, so that the centre of the first pixel is at (0.5, 0.5). The canvas lies on the video as a picture of
its size would: scaled until it covers the video, its centre kept and what stands out cut off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError

EASINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda t: t,
    "ease_in": lambda t: t * t,
    "ease_out": lambda t: t * (2 - t),
    "ease_in_out": lambda t: t * t * (3 - 2 * t),
}
"""How a movement is spread over the clip: from the share of the time to the share of the way, both 0..1."""


def eased(frames: int, easing: str = "linear") -> Tensor:
    """The share of the way (F,), float64, made by each frame: 0 at the first frame and 1 at the last.

    A clip of one frame is at 0. Raises UserError for an unknown easing or for no frames.
    """
    if frames < 1:
        raise UserError(f"{frames} frames cannot be drawn: expected at least 1.")
    return EASINGS[chosen("easing", easing, EASINGS)](torch.linspace(0, 1, frames, dtype=torch.float64))


def chosen(what: str, value: str, known: Collection[str]) -> str:
    """The value, where it is known; else a UserError that lists what is."""
    if value not in known:
        raise UserError(f"The {what} {value!r} is unknown: choose one of {', '.join(known)}.")
    return value


@dataclass(frozen=True)
class Placement:
    """How a canvas lies on a video of `size` (height, width): video = canvas · scale + (left, top), in pixels."""

    size: tuple[int, int]
    scale: float
    left: float
    top: float

    def to_video(self, points: Tensor) -> Tensor:
        """Places (..., 2) as x, y, from the canvas to the video."""
        return points * self.scale + points.new_tensor([self.left, self.top])

    def pixels(self) -> tuple[Tensor, Tensor]:
        """The centres of the video's pixels in pixels of the canvas: x (W,) and y (H, 1), float64."""
        x, y = pixel_centers(self.size)
        return (x - self.left) / self.scale, (y - self.top) / self.scale


def place(canvas: tuple[int, int] | None, size: tuple[int, int]) -> Placement:
    """The canvas (height, width) on a video of `size`; None is a canvas of the video's own size.

    Raises UserError for sides that are not above 0.
    """
    canvas = canvas or size
    for what, sides in (("canvas", canvas), ("video", size)):
        if not all(side > 0 and math.isfinite(side) for side in sides):
            raise UserError(f"The {what} is {sides[1]}x{sides[0]} pixels: expected a width and a height above 0.")
    scale = max(side / drawn for side, drawn in zip(size, canvas, strict=True))
    top, left = ((side - drawn * scale) / 2 for side, drawn in zip(size, canvas, strict=True))
    return Placement(size, scale, left, top)


def pixel_centers(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """x (W,) and y (H, 1) of the pixels' centres, float64; they broadcast to (H, W)."""
    y, x = (torch.arange(side, dtype=torch.float64) + 0.5 for side in size)
    return x, y[:, None]


@dataclass(frozen=True)
class Rectangle:
    """A rectangle by its edges; an edge may be at infinity."""

    left: float
    top: float
    right: float
    bottom: float

    def covers(self, x: Tensor, y: Tensor, pixel: float = 0.0) -> Tensor:
        """Whether the places lie inside; a pixel belongs to the rectangle that its centre is in."""
        return (x >= self.left) & (x < self.right) & (y >= self.top) & (y < self.bottom)


@dataclass(frozen=True)
class Stroke:
    """A brush stroke of a width from one point (x, y) to another, with round ends.

    It is as wide as a pixel's diagonal at least, so that a thin stroke has no gaps.
    """

    start: tuple[float, float]
    end: tuple[float, float]
    width: float

    def covers(self, x: Tensor, y: Tensor, pixel: float) -> Tensor:
        """Whether the places lie under the brush; `pixel` is the side of one pixel of the video."""
        # A little more than half a pixel's diagonal: an end at a pixel's corner is in it, whatever the rounding.
        reach = max(self.width / 2, pixel * 0.7075)
        (x1, y1), along, up = self.start, self.end[0] - self.start[0], self.end[1] - self.start[1]
        share = ((x - x1) * along + (y - y1) * up).div_(along * along + up * up or 1.0).clamp_(0, 1)
        return (x - x1 - share * along).square_() + (y - y1 - share * up).square_() <= reach * reach


Shape = Rectangle | Stroke


def half(side: str, canvas: tuple[int, int]) -> Rectangle:
    """The left, right, top or bottom half of the canvas, without end beyond it."""
    edges = {"left": -math.inf, "top": -math.inf, "right": math.inf, "bottom": math.inf}
    opposite = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}[side]
    return Rectangle(**{**edges, opposite: canvas[side in ("left", "right")] // 2})


def draw_shapes(shapes: Sequence[Shape], size: tuple[int, int], canvas: tuple[int, int] | None = None) -> Tensor:
    """Where any of the shapes is, (1, 1, 1, H, W) of {0, 1}, on a video of `size` (height, width).

    canvas: (height, width) that the shapes are drawn on, by default the same. Raises UserError for a size that is not
    possible.
    """
    placement = place(canvas, size)
    x, y = placement.pixels()
    drawn = torch.zeros(size, dtype=torch.bool)
    for shape in shapes:
        drawn |= shape.covers(x, y, 1 / placement.scale)
    return drawn[None, None, None].float()
