"""Tiles: frames larger than the network was trained for, predicted as overlapping pieces."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError
from .windows import Windows

SMALLEST = 32
"""Smallest side of a tile in pixels: four positions of the latent, one at the network's deepest level."""

Network = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""`network(x, timesteps, context, stc)`, see `UNet3D.forward`."""


@dataclass(frozen=True)
class Tiles:
    """How frames are split.

    Attributes:
        height, width: of a tile in pixels, multiples of 8.
        overlap: pixels that neighbouring tiles share, a multiple of 8 and less than both sides; by default a quarter of
            the shorter side, rounded down to a multiple of 8.

    Raises:
        UserError: a value is too small, too large or not a multiple of 8.
    """

    height: int
    width: int
    overlap: int | None = None

    def __post_init__(self) -> None:
        if self.overlap is None:
            object.__setattr__(self, "overlap", min(self.height, self.width) // 32 * 8)
        if min(self.height, self.width) < SMALLEST or self.height % 8 or self.width % 8:
            raise UserError(
                f"The sides of a tile must be multiples of 8 and at least {SMALLEST} pixels, got "
                f"{self.width}x{self.height}."
            )
        if not 0 <= self.overlap < min(self.height, self.width) or self.overlap % 8:
            raise UserError(
                f"The overlap of tiles of {self.width}x{self.height} must be a multiple of 8 from 0 to "
                f"{min(self.height, self.width) - 8} pixels, got {self.overlap}."
            )

    def parts(self, height: int, width: int) -> Iterator[tuple[slice, slice, Tensor]]:
        """Yield the rows and columns of each tile of a latent, and its weights `(rows, columns)`. At every position the
        sum of the weights is 1. A frame that is not larger than a tile is one tile."""
        rows, columns = (Windows(side // 8, self.overlap // 8) for side in (self.height, self.width))
        for row_span, row_weight in zip(rows.spans(height), rows.weights(height), strict=True):
            for column_span, column_weight in zip(columns.spans(width), columns.weights(width), strict=True):
                yield row_span, column_span, row_weight[:, None] * column_weight

    def run(self, network: Network, x: Tensor, timesteps: Tensor, context: Tensor, stc: Tensor | None) -> Tensor:
        """Return the network's predictions for the tiles of x `(B, C, F, h, w)`, blended (MultiDiffusion, arXiv
        2302.08113). Each tile gets its part of `stc`, the sum of the STC embeddings of the entire frames."""
        parts = list(self.parts(*x.shape[-2:]))
        if len(parts) == 1:
            return network(x, timesteps, context, stc)
        blended = torch.zeros_like(x)
        for rows, columns, weights in parts:
            stc_part = None if stc is None else stc[..., rows, columns]
            part = network(x[..., rows, columns], timesteps, context, stc_part)
            blended[..., rows, columns] += weights.to(part) * part
        return blended
