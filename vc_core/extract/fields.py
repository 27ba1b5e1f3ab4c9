"""Motion fields as such: adding them, bringing them to another size, and making the condition of a checkpoint's kind.

A motion field is (B, 2, F, H, W): dx, dy in pixels of its own size that content moved from the previous frame to this
one, told at the place where the content is now; right and down positive; frame 0 is zero.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..conditions import drawing_size
from ..config import ExtractionConfig
from ..errors import UserError
from ..video import resize_crop
from .refit import refit
from .vectors import VECTOR, BlockVectors, rasterise_points

NOMINAL_SIDE = 336
"""Shorter side in pixels of the clips that the released network was trained on (they were about 596 x 336)."""

BLOCK = 16
"""Side of MPEG-4's blocks."""

I_FRAME_EVERY = 12
"""MPEG-4's default distance of I-frames, which have no vectors: the released network has seen none at frame 12."""


def check_field(field: Tensor) -> Tensor:
    """The field, where it is one. Raises UserError for another shape, no finite numbers or motion at frame 0."""
    if field.ndim != 5 or field.shape[1] != 2:
        raise UserError(
            f"The motion field has the shape {tuple(field.shape)}: expected (batch, 2, frames, height, width)."
        )
    if not torch.isfinite(field).all():
        raise UserError("The motion field holds values that are not finite: check where it was made.")
    if field[:, :, :1].any():
        raise UserError(
            "The motion field has motion at its first frame, which nothing precedes: expected zeros there; put a frame "
            "of zeros before flows that begin with the second frame."
        )
    return field


def add_fields(*fields: Tensor) -> Tensor:
    """The sum of motion fields (B or 1, 2, F, H, W), such as an object's and a camera's.

    An object's field then says how it moves within the picture that the camera moves. For camera moves alone,
    `camera_field` composes several exactly. Raises UserError where they differ in frames or size, or are none.
    """
    if not fields:
        raise UserError("No motion field was given to be added: expected at least one.")
    first = fields[0]
    for field in fields:
        if check_field(field).shape[2:] != first.shape[2:] or len({len(field), len(first), 1}) > 2:
            raise UserError(
                f"Motion fields of the shapes {tuple(first.shape)} and {tuple(field.shape)} cannot be added: expected "
                "the same frames, height and width; make or fit them to the same video."
            )
    return sum(fields[1:], first)


def fit_field(field: Tensor, size: tuple[int, int]) -> Tensor:
    """A dense field scaled to cover `size` (height, width) and centre-cropped, its vectors scaled with it."""
    height, width = field.shape[-2:]
    return resize_crop(field, size) * max(size[0] / height, size[1] / width)


def condition_from_field(
    field: Tensor, extraction: ExtractionConfig, size: tuple[int, int], i_frame_every: int | None = I_FRAME_EVERY
) -> Tensor:
    """The motion condition (B, 2, F, h, w) of a dense motion field, as a checkpoint was trained to see motion.

    `dense` in pixels: the field itself, in pixels of the video whatever the condition's own size. `points` in source
    pixels: what the released path would have seen of a source with this motion whose shorter side is 336. Its 16-pixel
    blocks have the field's vectors at their centres, in its pixels, each at one pixel of the map, and I-frames have
    none.

    Args:
        field: (B, 2, F, H, W) in its own pixels; where it has not the video's size, it is fitted to it first.
        size: (height, width) of the video to be composed, multiples of 8.
        i_frame_every: distance of the I-frames of `points`; None: only frame 0 is without vectors.

    Raises:
        UserError: no motion field, see `check_field`.
    """
    check_field(field)
    field = field.float() if field.shape[-2:] == tuple(size) else fit_field(field.float(), size)
    if extraction.motion_layout == "dense":
        return refit("motion", field, size, field.shape[2], extraction, size)
    source, frames = _nominal_source(size), field.shape[2]
    rows = [_block_rows(one, source, i_frame_every) for one in field]
    vectors = [BlockVectors(each, *source, frames, _kinds(frames, i_frame_every)) for each in rows]
    drawn = torch.cat([rasterise_points(each, source, frames, drawing_size("motion", size)) for each in vectors])
    return refit("motion", drawn.to(field.device), size, frames, extraction, size)


def _nominal_source(size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a source of the video's shape, as large as what the released network was trained on."""
    # The shorter side, not the height: it is what the centre crop to the released square keeps whole.
    return tuple(round(side * NOMINAL_SIDE / min(size)) for side in size)


def _kinds(frames: int, i_frame_every: int | None) -> str:
    return "".join("I" if frame % (i_frame_every or frames) == 0 else "P" for frame in range(frames))


def _block_rows(field: Tensor, source: tuple[int, int], i_frame_every: int | None) -> np.ndarray:
    """The VECTOR rows of a field (2, F, H, W) in pixels of a video, on the blocks of a source of the same shape."""
    frames, height, width = field.shape[1:]
    down, right = (torch.arange(-(-side // BLOCK)) * BLOCK + BLOCK // 2 for side in source)
    y, x = torch.meshgrid(down / source[0] * 2 - 1, right / source[1] * 2 - 1, indexing="ij")
    grid = torch.stack([x, y], dim=-1).to(field).expand(frames, -1, -1, -1)
    # (F, 2, rows, columns); the last blocks may have their centres beyond the edge and see what is at the edge.
    seen = F.grid_sample(field.transpose(0, 1), grid, padding_mode="border", align_corners=False)
    seen = seen * seen.new_tensor([source[1] / width, source[0] / height]).view(1, 2, 1, 1)
    coded = [frame for frame, kind in enumerate(_kinds(frames, i_frame_every)) if kind == "P"]
    rows = np.empty((len(coded), len(down), len(right)), VECTOR)
    rows["frame"] = np.array(coded, int)[:, None, None]
    rows["dst_y"], rows["dst_x"] = down.numpy()[:, None], right.numpy()
    rows["w"] = rows["h"] = BLOCK
    rows["dx"], rows["dy"] = seen[coded].cpu().transpose(0, 1).numpy()
    return rows.ravel()
