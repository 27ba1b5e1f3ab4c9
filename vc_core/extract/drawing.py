"""Common code of hand-drawn motion and masks: a canvas, shapes on it, and easing.

Coordinates are pixels of a canvas: x from 0 at its left edge to its width at the right, y downwards, so that the centre
of the first pixel is at (0.5, 0.5). The canvas is placed on the video like an image of its size: scaled to cover the
video, and centre-cropped.
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
"""How a movement is spread over the clip: from a fraction of the time to a fraction of the path, both in 0..1."""


def eased(frames: int, easing: str = "linear") -> Tensor:
    """The fraction of the path (F,), float64, covered at each frame: 0 at the first frame and 1 at the last.

    A clip of one frame is at 0. Raises UserError for an unknown easing, or fewer than 1 frame.
    """
    if frames < 1:
        raise UserError(f"Expected at least 1 frame, got {frames}.")
    return EASINGS[chosen("easing", easing, EASINGS)](torch.linspace(0, 1, frames, dtype=torch.float64))


def chosen(what: str, value: str, known: Collection[str]) -> str:
    """Return the value if it is one of `known`; else raise a UserError that lists them."""
    if value not in known:
        raise UserError(f"Unknown {what} {value!r}. Expected one of {', '.join(known)}.")
    return value


@dataclass(frozen=True)
class Placement:
    """Where a canvas is on a video of `size` (height, width): video = canvas · scale + (left, top), in pixels."""

    size: tuple[int, int]
    scale: float
    left: float
    top: float

    def to_video(self, points: Tensor) -> Tensor:
        """Convert points (..., 2), as x, y, from the canvas to the video."""
        return points * self.scale + points.new_tensor([self.left, self.top])

    def pixels(self) -> tuple[Tensor, Tensor]:
        """The centres of the video's pixels, in pixels of the canvas: x (W,) and y (H, 1), float64."""
        x, y = pixel_centers(self.size)
        return (x - self.left) / self.scale, (y - self.top) / self.scale


def place(canvas: tuple[int, int] | None, size: tuple[int, int]) -> Placement:
    """Place a canvas (height, width) on a video of `size`; None: a canvas of the video's size.

    Raises UserError if a side is not above 0.
    """
    canvas = canvas or size
    for what, sides in (("canvas", canvas), ("video", size)):
        if not all(side > 0 and math.isfinite(side) for side in sides):
            raise UserError(f"The {what} is {sides[1]}x{sides[0]} pixels. Expected a width and a height above 0.")
    scale = max(video / side for video, side in zip(size, canvas, strict=True))
    top, left = ((video - side * scale) / 2 for video, side in zip(size, canvas, strict=True))
    return Placement(size, scale, left, top)


def pixel_centers(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The x (W,) and y (H, 1) of the pixels' centres, float64; they broadcast to (H, W)."""
    y, x = (torch.arange(side, dtype=torch.float64) + 0.5 for side in size)
    return x, y[:, None]


@dataclass(frozen=True)
class Rectangle:
    """A rectangle, given by its edges; an edge may be at infinity."""

    left: float
    top: float
    right: float
    bottom: float

    def covers(self, x: Tensor, y: Tensor, pixel: float = 0.0) -> Tensor:
        """Whether points are inside. A pixel is inside if its centre is."""
        return (x >= self.left) & (x < self.right) & (y >= self.top) & (y < self.bottom)


@dataclass(frozen=True)
class Stroke:
    """A brush stroke from one point (x, y) to another, with round ends.

    It is at least as wide as a pixel's diagonal, so that a thin stroke has no gaps.
    """

    start: tuple[float, float]
    end: tuple[float, float]
    width: float

    def covers(self, x: Tensor, y: Tensor, pixel: float) -> Tensor:
        """Whether points are under the brush; `pixel` is the side of one pixel of the video."""
        # A little more than half a pixel's diagonal: it includes an end at a pixel's corner, whatever the rounding.
        reach = max(self.width / 2, pixel * 0.7075)
        (x1, y1), along, up = self.start, self.end[0] - self.start[0], self.end[1] - self.start[1]
        position = ((x - x1) * along + (y - y1) * up).div_(along * along + up * up or 1.0).clamp_(0, 1)
        return (x - x1 - position * along).square_() + (y - y1 - position * up).square_() <= reach * reach


Shape = Rectangle | Stroke


def half(side: str, canvas: tuple[int, int]) -> Rectangle:
    """The left, right, top or bottom half of the canvas, extended to infinity."""
    edges = {"left": -math.inf, "top": -math.inf, "right": math.inf, "bottom": math.inf}
    opposite = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}[side]
    return Rectangle(**{**edges, opposite: canvas[side in ("left", "right")] // 2})


def draw_shapes(shapes: Sequence[Shape], size: tuple[int, int], canvas: tuple[int, int] | None = None) -> Tensor:
    """The union of shapes, (1, 1, 1, H, W) of {0, 1}, on a video of `size` (height, width).

    canvas: (height, width) of the shapes' canvas, by default `size`. Raises UserError for a size that is not above 0.
    """
    placement = place(canvas, size)
    x, y = placement.pixels()
    union = torch.zeros(size, dtype=torch.bool)
    for shape in shapes:
        union |= shape.covers(x, y, 1 / placement.scale)
    return union[None, None, None].float()
