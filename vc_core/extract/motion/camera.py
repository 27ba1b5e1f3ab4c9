"""Motion that is made by hand: the field of a camera's moves, and the condition that a checkpoint sees of a field."""

from __future__ import annotations

import cmath
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...conditions import drawing_size
from ...config import ExtractionConfig
from ...errors import UserError
from ..drawing import eased, pixel_centers
from ..refit import refit
from .reencode import NOMINAL
from .vectors import BLOCK, VECTOR, BlockVectors, rasterise_points

I_FRAME_EVERY = 12
"""MPEG-4's default distance of I-frames, which have no vectors: the released network has seen none at frame 12."""


@dataclass(frozen=True)
class CameraMove:
    """What a camera does over a clip. The picture moves the other way: a pan to the right moves it to the left.

    Attributes:
        pan: (right, down) that the camera looks further, in widths and heights of the frame.
        zoom: factor by which things get larger; below 1 the camera zooms out. Equal frames zoom by equal factors.
        roll: degrees that the camera turns clockwise; the picture turns counter-clockwise.
        easing: one of `vc_core.extract.drawing.EASINGS`.

    Raises:
        UserError: a number that is not finite, or a zoom that is not above 0.
    """

    pan: tuple[float, float] = (0.0, 0.0)
    zoom: float = 1.0
    roll: float = 0.0
    easing: str = "linear"

    def __post_init__(self) -> None:
        for name, values in (("pan", self.pan), ("zoom", [self.zoom]), ("roll", [self.roll])):
            if not all(math.isfinite(value) for value in values):
                raise UserError(f"The camera's {name} is {getattr(self, name)}: expected finite numbers.")
        if not self.zoom > 0:
            raise UserError(f"The camera's zoom is {self.zoom:g}: expected a factor above 0, 1 for no zoom.")


def camera_field(move: CameraMove, frames: int, size: tuple[int, int]) -> Tensor:
    """The motion field (1, 2, F, H, W) of a camera, in pixels of a video of `size` (height, width).

    Exact: each frame's step is a similarity of the picture, a · z + b of places z = x + iy, and the field at a place
    is that place less where the step's inverse takes it. Raises UserError for an unknown easing or for no frames.
    """
    height, width = size
    x, y = pixel_centers(size)
    here = torch.complex(*torch.broadcast_tensors(x, y))  # (H, W)
    center = complex(width / 2, height / 2)  # stays where it is, but for the pan
    # In x + iy with y downwards, a positive angle is clockwise as seen: the picture turns against the camera.
    turn = complex(math.log(move.zoom), -math.radians(move.roll))
    shift = -complex(move.pan[0] * width, move.pan[1] * height)
    field = torch.zeros(1, 2, frames, *size)
    for frame, share in enumerate(eased(frames, move.easing).diff().tolist(), 1):
        factor = cmath.exp(share * turn)
        moved = here - (here - (center - factor * center + share * shift)) / factor
        field[0, :, frame] = torch.stack([moved.real, moved.imag]).float()
    return field


def condition_from_field(field: Tensor, extraction: ExtractionConfig, size: tuple[int, int]) -> Tensor:
    """The motion condition (1, 2, F, h, w) of a dense motion field, as a checkpoint was trained to see motion.

    `dense` in pixels: the field itself, in pixels of the video whatever the condition's own size. `points` in source
    pixels: what the released path would have seen of a source with this motion whose shorter side is 336. Its 16-pixel
    blocks have the field's vectors at their centres, in its pixels, each at one pixel of the map, and I-frames have
    none.

    Args:
        field: (1, 2, F, H, W) in pixels of the video to be composed, of which `size` is the (height, width).
    """
    if extraction.motion_layout == "points":
        # The shorter side, not the height: it is what the centre crop to the released square keeps whole.
        source = tuple(round(side * NOMINAL / min(size)) for side in size)
        vectors = BlockVectors(_block_rows(field[0].float(), source), *source, field.shape[2])
        field = rasterise_points(vectors, drawing_size("motion", size))
    return refit("motion", field, size, field.shape[2], extraction, size)


def _block_rows(field: Tensor, source: tuple[int, int]) -> np.ndarray:
    """The VECTOR rows of a field (2, F, H, W) in pixels of a video, on the blocks of a source of the same shape."""
    frames, height, width = field.shape[1:]
    down, right = (torch.arange(-(-side // BLOCK)) * BLOCK + BLOCK // 2 for side in source)
    y, x = torch.meshgrid(down / source[0] * 2 - 1, right / source[1] * 2 - 1, indexing="ij")
    grid = torch.stack([x, y], dim=-1).to(field).expand(frames, -1, -1, -1)
    # (F, 2, rows, columns); the last blocks may have their centres beyond the edge and see what is at the edge.
    seen = F.grid_sample(field.transpose(0, 1), grid, padding_mode="border", align_corners=False)
    seen = seen * seen.new_tensor([source[1] / width, source[0] / height]).view(1, 2, 1, 1)
    coded = [frame for frame in range(frames) if frame % I_FRAME_EVERY]
    rows = np.empty((len(coded), len(down), len(right)), VECTOR)
    rows["frame"] = np.array(coded, int)[:, None, None]
    rows["dst_y"], rows["dst_x"] = down.numpy()[:, None], right.numpy()
    rows["w"] = rows["h"] = BLOCK
    rows["dx"], rows["dy"] = seen[coded].transpose(0, 1).numpy()
    return rows.ravel()
