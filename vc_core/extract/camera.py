"""Motion fields of camera moves: pan, zoom and roll, and several of them at once."""

from __future__ import annotations

import cmath
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from ..errors import UserError
from .drawing import eased, pixel_centers


@dataclass(frozen=True)
class CameraMove:
    """What a camera does over a clip. The picture moves the other way: a pan to the right moves it to the left.

    Attributes:
        pan: (right, down) that the camera looks further, in widths and heights of the frame.
        zoom: factor by which things get larger; below 1 the camera zooms out. Equal frames zoom by equal factors.
        roll: degrees that the camera turns clockwise; the picture turns counter-clockwise.
        center: (x, y) in widths and heights of the frame that zoom and roll leave where it is, at every frame.
        easing: one of `vc_core.extract.drawing.EASINGS`.

    Raises:
        UserError: a number that is not finite, or a zoom that is not above 0.
    """

    pan: tuple[float, float] = (0.0, 0.0)
    zoom: float = 1.0
    roll: float = 0.0
    center: tuple[float, float] = (0.5, 0.5)
    easing: str = "linear"

    def __post_init__(self) -> None:
        for name, values in (("pan", self.pan), ("zoom", [self.zoom]), ("roll", [self.roll]), ("center", self.center)):
            if not all(math.isfinite(value) for value in values):
                raise UserError(f"The camera's {name} is {getattr(self, name)}: expected finite numbers.")
        if not self.zoom > 0:
            raise UserError(f"The camera's zoom is {self.zoom:g}: expected a factor above 0, 1 for no zoom.")


def camera_field(moves: CameraMove | Sequence[CameraMove], frames: int, size: tuple[int, int]) -> Tensor:
    """The motion field (1, 2, F, H, W) of a camera, in pixels of a video of `size` (height, width).

    Exact: each frame's step is a similarity of the picture, and the field at a place is that place less where the
    step's inverse takes it. Several moves happen at once: within each frame's step they are carried out one after
    the other, in the order given, which differs from adding their fields (`add_fields`) in the second order only.

    Raises UserError for an unknown easing or for no frames.
    """
    moves = [moves] if isinstance(moves, CameraMove) else list(moves)
    x, y = pixel_centers(size)
    here = torch.complex(*torch.broadcast_tensors(x, y))  # (H, W): x + iy, of which a similarity is a · z + b
    field = torch.zeros(1, 2, frames, *size)
    steps = [_steps(move, frames, size) for move in moves]
    for frame in range(1, frames):
        factor, shift = reduce(_after, (step[frame] for step in steps), (1 + 0j, 0j))
        moved = here - (here - shift) / factor
        field[0, :, frame] = torch.stack([moved.real, moved.imag]).float()
    return field


Similarity = tuple[complex, complex]
"""(a, b): the map of places x + iy in pixels to a · z + b."""


def _after(first: Similarity, second: Similarity) -> Similarity:
    """The second carried out after the first."""
    return first[0] * second[0], first[1] * second[0] + second[1]


def _steps(move: CameraMove, frames: int, size: tuple[int, int]) -> list[Similarity]:
    """How the picture moves from each frame's predecessor to the frame; the first frame's is the identity."""
    height, width = size
    center = complex(move.center[0] * width, move.center[1] * height)
    # In x + iy with y downwards, a positive angle is clockwise as seen: the picture turns against the camera.
    turn = complex(math.log(move.zoom), -math.radians(move.roll))
    shift = -complex(move.pan[0] * width, move.pan[1] * height)
    way = eased(frames, move.easing)
    result = [(1 + 0j, 0j)]
    for share in way.diff().tolist():
        factor = cmath.exp(share * turn)
        result.append((factor, center - factor * center + share * shift))
    return result
