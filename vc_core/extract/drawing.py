"""What hand-made motion and masks share: a canvas to draw on, shapes that may travel over it, and easing.

Whoever draws does so on a canvas of their own, in its pixels: x from 0 at its left edge to its width at the right,
y downwards, so that the centre of the first pixel is at (0.5, 0.5). The canvas lies on the video as a picture of
its size would: scaled until it covers the video, its centre kept and what stands out cut off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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


def chosen(what: str, value: str, known: Sequence[str]) -> str:
    """The value, where it is known; else a UserError that lists what is."""
    if value not in known:
        raise UserError(f"The {what} {value!r} is unknown: choose one of {', '.join(known)}.")
    return value


# ---------------------------------------------------------------------------------------------------------------
# Where the canvas lies
# ---------------------------------------------------------------------------------------------------------------


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


# ---------------------------------------------------------------------------------------------------------------
# Shapes
# ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rectangle:
    """A rectangle by its edges; an edge may be at infinity.

    Attributes:
        travel: (x, y) that the shape moves over the whole clip, in pixels of the canvas.
    """

    left: float
    top: float
    right: float
    bottom: float
    travel: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        _check_finite("travel of the rectangle", self.travel)
        if not (self.left < self.right and self.top < self.bottom):
            raise UserError(
                f"The rectangle's edges are left {self.left:g}, top {self.top:g}, right {self.right:g}, bottom "
                f"{self.bottom:g}: expected left below right and top below bottom."
            )

    def covers(self, x: Tensor, y: Tensor, pixel: float) -> Tensor:
        """Whether the places lie inside; a pixel belongs to the rectangle that its centre is in."""
        return (x >= self.left) & (x < self.right) & (y >= self.top) & (y < self.bottom)


@dataclass(frozen=True)
class Stroke:
    """A brush stroke along points (x, y), with round ends and joints.

    Attributes:
        width: of the brush; drawn as wide as a pixel's diagonal at least, so that a thin stroke has no gaps.
        travel: see `Rectangle`.
    """

    points: tuple[tuple[float, float], ...]
    width: float
    travel: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        _check_finite("path of the stroke", [value for point in self.points for value in point])
        _check_finite("travel of the stroke", self.travel)
        if not self.points or not self.width > 0:
            raise UserError(
                f"The stroke has {len(self.points)} points and the width {self.width:g}: expected a point at least "
                "and a width above 0."
            )

    def covers(self, x: Tensor, y: Tensor, pixel: float) -> Tensor:
        """Whether the places lie under the brush; `pixel` is the side of one pixel of the video."""
        # A little more than half a pixel's diagonal: an end at a pixel's corner is in it, whatever the rounding.
        reach = max(self.width / 2, pixel * 0.7075)
        covered = torch.zeros(torch.broadcast_shapes(x.shape, y.shape), dtype=torch.bool)
        for start, end in zip(self.points, self.points[1:] or self.points, strict=False):
            covered |= _squared_distance(x, y, *start, *end) <= reach * reach
        return covered


Shape = Rectangle | Stroke


def half(side: str, canvas: tuple[int, int], travel: tuple[float, float] = (0.0, 0.0)) -> Rectangle:
    """The left, right, top or bottom half of the canvas, without end beyond it: it leaves no gap where it travels."""
    height, width = canvas
    edges = {
        "left": {"right": width // 2},
        "right": {"left": width // 2},
        "top": {"bottom": height // 2},
        "bottom": {"top": height // 2},
    }
    everywhere = {"left": -math.inf, "top": -math.inf, "right": math.inf, "bottom": math.inf}
    return Rectangle(**(everywhere | edges[chosen("half", side, list(edges))]), travel=travel)


def draw_shapes(
    shapes: Sequence[Shape],
    frames: int,
    size: tuple[int, int],
    canvas: tuple[int, int] | None = None,
    easing: str = "linear",
) -> Tensor:
    """Where any of the shapes is, (1, 1, F, H, W) of {0, 1}: each moves along its travel as the easing says.

    size: (height, width) of the video; canvas: (height, width) that the shapes are drawn on, by default the same.
    Raises UserError for an unknown easing or a size that is not possible.
    """
    placement, way = place(canvas, size), eased(frames, easing)
    x, y = placement.pixels()
    drawn = torch.zeros(frames, *size, dtype=torch.bool)
    for shape in shapes:
        if shape.travel == (0, 0):
            drawn |= shape.covers(x, y, 1 / placement.scale)
            continue
        for share, frame in zip(way.tolist(), drawn, strict=True):
            right, down = (share * distance for distance in shape.travel)
            frame |= shape.covers(x - right, y - down, 1 / placement.scale)
    return drawn[None, None].float()


def _squared_distance(x: Tensor, y: Tensor, x1: float, y1: float, x2: float, y2: float) -> Tensor:
    """Squared distance of places to the segment from (x1, y1) to (x2, y2)."""
    along, up = x2 - x1, y2 - y1
    length = along * along + up * up
    share = ((x - x1) * along + (y - y1) * up).div_(length or 1.0).clamp_(0, 1)
    return (x - x1 - share * along).square_() + (y - y1 - share * up).square_()


def _check_finite(what: str, values: Sequence[float]) -> None:
    if not all(math.isfinite(value) for value in values):
        raise UserError(f"The {what} has the values {tuple(values)}: expected finite numbers.")
