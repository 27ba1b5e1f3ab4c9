"""Block vectors, and the maps that are drawn from them at the target size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...video.frames import covering, covering_scale

# One row per block: its frame, the block's centre and size, and the displacement of its content from the previous frame
# to this one. Everything is in source pixels.
VECTOR = np.dtype(
    [("frame", "i4"), ("dst_x", "i4"), ("dst_y", "i4"), ("w", "i4"), ("h", "i4"), ("dx", "f4"), ("dy", "f4")]
)
NONE = np.empty(0, VECTOR)
BLOCK = 16
"""Side of MPEG-4's blocks."""
CELL = 4  # widths, heights and positions of blocks are multiples of 4 pixels


@dataclass(frozen=True)
class BlockVectors:
    """The block vectors of a clip of this size and length: `rows` of VECTOR, in decoding order.

    I-frames, and blocks coded without reference, have no rows.
    """

    rows: np.ndarray
    height: int
    width: int
    frames: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the source."""
        return self.height, self.width

    def by_frame(self) -> Iterator[np.ndarray]:
        """The rows of each frame, in order."""
        order = np.argsort(self.rows["frame"], kind="stable")
        ends = np.searchsorted(self.rows["frame"][order], np.arange(self.frames + 1))
        return (self.rows[order[first:last]] for first, last in pairwise(ends))


def exported(frame, number: int = 0) -> np.ndarray:
    """The VECTOR rows of one decoded av.VideoFrame; empty if ffmpeg exports none, as for I-frames."""
    from av.sidedata.sidedata import SideDataContainer

    # frame.side_data would create a reference cycle, which keeps the frame in memory until the garbage collector runs.
    side_data = SideDataContainer(frame).get("MOTION_VECTORS")
    if side_data is None:
        return NONE
    raw = side_data.to_ndarray()  # a view into the frame; the code below copies it
    rows = np.empty(len(raw), VECTOR)
    rows["frame"] = number
    for name in ("dst_x", "dst_y", "w", "h"):
        rows[name] = raw[name]
    # ffmpeg's motion points from this block to the content's previous position, and `source` is -1 for the past: the
    # product is the displacement of the content.
    direction = raw["source"] / raw["motion_scale"].astype(np.float64)
    rows["dx"], rows["dy"] = direction * raw["motion_x"], direction * raw["motion_y"]
    return rows


# Maps. Resizing and cropping are linear along each axis, so a map with few known positions needs only two small matrix
# products, and the map at source size is never computed.


@dataclass(frozen=True)
class PointMap:
    """The released map (tools/videocomposer/datasets.py) of a source of `source` (h, w), at `size` (h, w).

    Every vector is at one pixel, its block's centre clipped to the frame; the last one wins; all other pixels are zero.
    That map is scaled bilinearly, without antialiasing, to cover `size`, and centre-cropped.
    """

    source: tuple[int, int]
    size: tuple[int, int]

    def __call__(self, rows: np.ndarray) -> Tensor:
        """Draw one frame's rows as (2, h, w), in the rows' pixels."""
        centres = [rows[name].clip(0, side - 1) for name, side in zip(("dst_y", "dst_x"), self.source, strict=True)]
        (ys, down), (xs, right) = (np.unique(axis, return_inverse=True) for axis in centres)
        grid = np.zeros((2, len(ys), len(xs)), np.float32)
        grid[:, down, right] = rows["dx"], rows["dy"]
        scaled, corner = covering(self.source, self.size)
        y, x = (
            _weights(torch.from_numpy(at.astype(np.float32)), *along)
            for at, along in zip((ys, xs), zip(self.source, scaled, corner, self.size, strict=True), strict=True)
        )
        return y @ torch.from_numpy(grid) @ x.T


def _weights(at: Tensor, length: int, scaled: int, first: int, count: int) -> Tensor:
    """(count, n): the weight of each source pixel `at` (n) in `count` of the `scaled` pixels, starting at `first`."""
    centres = (torch.arange(first, first + count) + 0.5) * (length / scaled) - 0.5
    return (1 - (centres.clamp(0, length - 1)[:, None] - at).abs()).clamp(min=0)


class CellMap:
    """The dense map of a source of `source` (h, w), at `size`: cells filled with their values, antialiased.

    `shown` (h, w) is the size to which the source is scaled first, for example for square pixels (default: unchanged);
    `backward` says whether its rows and its columns are stored in reverse order.
    """

    def __init__(
        self,
        source: tuple[int, int],
        size: tuple[int, int],
        cell: int = CELL,
        shown: tuple[int, int] | None = None,
        backward: tuple[bool, bool] = (False, False),
    ):
        self.source, self.cell = source, cell
        scaled, corner = covering(shown or source, size)
        self.scale = covering_scale(shown or source, size)
        self.y, self.x = (_cells(cell, *along) for along in zip(source, scaled, corner, size, backward, strict=True))

    def __call__(self, rows: np.ndarray) -> Tensor:
        """Draw one frame's rows as (2, h, w), in the rows' pixels; zero where there is no block."""
        return self.spread(np.nan_to_num(to_cells(rows, self.source, self.cell)))

    def spread(self, grid: np.ndarray) -> Tensor:
        """Draw a grid (2, rows, columns) of cells as (2, h, w)."""
        return self.y @ torch.from_numpy(grid) @ self.x.T


class BlockMeans:
    """Convert a grid of cells to the VECTOR rows of an encoder's blocks; each is the mean of the cells that it covers.

    The grid belongs to a source of `source` (h, w), scaled to `shown` (h, w), which the blocks divide; see `CellMap`.
    """

    def __init__(self, source: tuple[int, int], shown: tuple[int, int], cell: int, backward: tuple[bool, bool]):
        full = CellMap(source, shown, cell, backward=backward)
        self.y, self.x = (
            F.avg_pool1d(axis.T[None], BLOCK, ceil_mode=True)[0].T.contiguous() for axis in (full.y, full.x)
        )
        self.blank = np.zeros((len(self.y), len(self.x)), VECTOR)
        self.blank["dst_y"], self.blank["dst_x"] = np.mgrid[: len(self.y), : len(self.x)] * BLOCK + BLOCK // 2
        self.blank["w"] = self.blank["h"] = BLOCK

    def __call__(self, grid: np.ndarray) -> np.ndarray:
        rows = self.blank.copy()
        rows["dx"], rows["dy"] = (self.y @ torch.from_numpy(grid) @ self.x.T).numpy()
        return rows.reshape(-1)


def _cells(cell: int, length: int, scaled: int, first: int, count: int, backward: bool) -> Tensor:
    """(count, n): the weight of each of n cells of an axis in `count` of the `scaled` pixels, starting at `first`."""
    stored = torch.arange(length).flip(0) if backward else torch.arange(length)
    weights = (stored[:, None] // cell == torch.arange(-(-length // cell))).float()[None, None]
    if scaled != length:
        shape = (scaled, weights.shape[-1])
        weights = F.interpolate(weights, size=shape, mode="bilinear", align_corners=False, antialias=True)
    return weights[0, 0, first : first + count].contiguous()


def to_cells(rows: np.ndarray, source: tuple[int, int], cell: int = CELL) -> np.ndarray:
    """The cells of a frame, (2, rows, columns): the displacement of the block on each, NaN without a block."""
    down, right = (-(-side // cell) for side in source)
    margin = 32 // cell  # for blocks that extend beyond the frame
    grid = np.full((2, down + 2 * margin, right + 2 * margin), np.nan, np.float32)
    inside = (rows["dst_y"] > -16) & (rows["dst_y"] < source[0] + 16)
    inside &= (rows["dst_x"] > -16) & (rows["dst_x"] < source[1] + 16)
    rows = rows if inside.all() else rows[inside]
    key = rows["w"] * 256 + rows["h"]
    for kind in np.unique(key):
        w, h, blocks = kind // 256, kind % 256, rows[key == kind]
        top, left = (blocks["dst_y"] - h // 2) // cell + margin, (blocks["dst_x"] - w // 2) // cell + margin
        for y in range(max(1, h // cell)):
            for x in range(max(1, w // cell)):
                grid[0, top + y, left + x], grid[1, top + y, left + x] = blocks["dx"], blocks["dy"]
    return np.ascontiguousarray(grid[:, margin : margin + down, margin : margin + right])


def rasterise_points(vectors: BlockVectors, size: tuple[int, int]) -> Tensor:
    """The released map (1, 2, F, h, w) of block vectors, in source pixels; see `PointMap`."""
    return fill(map(PointMap(vectors.size, size), vectors.by_frame()), vectors.frames, size)


def rasterise_dense(vectors: BlockVectors, size: tuple[int, int]) -> Tensor:
    """The dense map (1, 2, F, h, w) in pixels of `size`: blocks filled with their vectors, antialiased, else zero."""
    draw = CellMap(vectors.size, size)
    return fill((draw(rows) * draw.scale for rows in vectors.by_frame()), vectors.frames, size)


def fill(maps: Iterable[Tensor], frames: int, size: tuple[int, int]) -> Tensor:
    """Collect F maps (2, h, w), one by one, in a field (1, 2, F, h, w)."""
    field = torch.empty(1, 2, frames, *size)
    for number, each in zip(range(frames), maps, strict=True):
        field[0, :, number] = each
    return field
