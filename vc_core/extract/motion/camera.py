"""Motion by hand: the motion field of a camera move, and the condition of a motion field for a checkpoint."""

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
"""MPEG-4's default distance of I-frames, which have no vectors: in the released training, frame 12 had none."""


@dataclass(frozen=True)
class CameraMove:
    """A camera move over a clip. The image moves in the opposite direction: a pan to the right moves it to the left.

    Attributes:
        pan: (right, down) displacement of the view, in widths and heights of the frame.
        zoom: factor by which objects grow; below 1 the camera zooms out. With linear easing, the factor per frame is
            constant.
        roll: clockwise rotation of the camera in degrees; the image rotates counter-clockwise.
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
                raise UserError(f"The camera's {name} is {getattr(self, name)}. Expected finite numbers.")
        if not self.zoom > 0:
            raise UserError(f"The camera's zoom is {self.zoom:g}. Expected a factor above 0, 1 for no zoom.")


def camera_field(move: CameraMove, frames: int, size: tuple[int, int]) -> Tensor:
    """The motion field (1, 2, F, H, W) of a camera, in pixels of a video of `size` (height, width).

    It is exact: each frame's step is a similarity of the image, a · z + b of points z = x + iy; the field at a point is
    the point minus its image under the inverse step. Raises UserError for an unknown easing, or fewer than 1 frame.
    """
    height, width = size
    x, y = pixel_centers(size)
    points = torch.complex(*torch.broadcast_tensors(x, y))  # (H, W)
    center = complex(width / 2, height / 2)  # fixed, except for the pan
    # In x + iy with y downwards, a positive angle is clockwise on screen: the image rotates against the camera.
    turn = complex(math.log(move.zoom), -math.radians(move.roll))
    shift = -complex(move.pan[0] * width, move.pan[1] * height)
    field = torch.zeros(1, 2, frames, *size)
    for frame, fraction in enumerate(eased(frames, move.easing).diff().tolist(), 1):
        factor = cmath.exp(fraction * turn)
        displacement = points - (points - (center - factor * center + fraction * shift)) / factor
        field[0, :, frame] = torch.stack([displacement.real, displacement.imag]).float()
    return field


def condition_from_field(field: Tensor, extraction: ExtractionConfig, size: tuple[int, int]) -> Tensor:
    """Convert a dense motion field to the motion condition (1, 2, F, h, w), in the form that a checkpoint expects.

    `dense` in pixels: the field itself, in pixels of the video, whatever the condition's size. `points` in source
    pixels: the result of the released code for a source with this motion and a shorter side of 336 pixels. Its 16-pixel
    blocks have the field's vectors at their centres, in its pixels, each at one pixel of the map; I-frames have none.

    Args:
        field: (1, 2, F, H, W) in pixels of the video to compose, whose (height, width) is `size`.
    """
    if extraction.motion_layout == "points":
        # The shorter side, not the height: the centre crop to the released square keeps all of it.
        source = tuple(round(side * NOMINAL / min(size)) for side in size)
        vectors = BlockVectors(_block_rows(field[0].float(), source), *source, field.shape[2])
        field = rasterise_points(vectors, drawing_size("motion", size))
    return refit("motion", field, size, field.shape[2], extraction, size)


def _block_rows(field: Tensor, source: tuple[int, int]) -> np.ndarray:
    """The VECTOR rows of a field (2, F, H, W), in pixels of a video, for a source of its aspect ratio."""
    frames, height, width = field.shape[1:]
    down, right = (torch.arange(-(-side // BLOCK)) * BLOCK + BLOCK // 2 for side in source)
    y, x = torch.meshgrid(down / source[0] * 2 - 1, right / source[1] * 2 - 1, indexing="ij")
    grid = torch.stack([x, y], dim=-1).to(field).expand(frames, -1, -1, -1)
    # (F, 2, rows, columns); the centres of the last blocks may be beyond the edge: they use the value at the edge.
    sampled = F.grid_sample(field.transpose(0, 1), grid, padding_mode="border", align_corners=False)
    sampled = sampled * sampled.new_tensor([source[1] / width, source[0] / height]).view(1, 2, 1, 1)
    coded = [frame for frame in range(frames) if frame % I_FRAME_EVERY]
    rows = np.empty((len(coded), len(down), len(right)), VECTOR)
    rows["frame"] = np.array(coded, int)[:, None, None]
    rows["dst_y"], rows["dst_x"] = down.numpy()[:, None], right.numpy()
    rows["w"] = rows["h"] = BLOCK
    rows["dx"], rows["dy"] = sampled[coded].transpose(0, 1).numpy()
    return rows.ravel()
