"""Tiles: frames that are larger than the network was trained for, as overlapping rectangles."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import Config, UNetConfig
from ..errors import UserError
from .windows import Windows

Network = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""`network(x, timesteps, context, stc)`, see `UNet3D.forward`."""


@dataclass(frozen=True)
class Tiles:
    """How large frames are split into tiles.

    Attributes:
        height, width: of a tile in pixels, multiples of 8.
        overlap: pixels that neighbouring tiles share, a multiple of 8 and less than both sides; by default half of the
            shorter side, rounded down to a multiple of 8.

    Raises:
        UserError: a value is too small, too large or not a multiple of 8.
    """

    height: int
    width: int
    overlap: int | None = None

    def __post_init__(self) -> None:
        shorter = min(self.height, self.width)
        if self.overlap is None:
            object.__setattr__(self, "overlap", shorter // 16 * 8)
        if shorter < 8 or self.height % 8 or self.width % 8:
            raise UserError(
                f"The sides of tiles must be multiples of 8, such as 256x256 pixels. Got {self.width}x{self.height}."
            )
        if not 0 <= self.overlap < shorter or self.overlap % 8:
            raise UserError(
                f"The overlap of tiles of {self.width}x{self.height} must be a multiple of 8 from 0 to {shorter - 8} "
                f"pixels, got {self.overlap}."
            )

    @staticmethod
    def trained(config: Config, overlap: int | None = None) -> "Tiles":
        """Tiles of the size that a checkpoint was trained for."""
        least = smallest(config.unet)
        return Tiles(*(max(least, side // 8 * 8) for side in (config.height, config.width)), overlap)

    def check(self, config: UNetConfig) -> None:
        """Raise `UserError` if the tiles are too small for a network."""
        if min(self.height, self.width) < (least := smallest(config)):
            raise UserError(
                f"The tiles are {self.width}x{self.height} pixels, but this checkpoint's network needs at least "
                f"{least}x{least}. Use larger tiles."
            )

    def within(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) of the tiles of a latent, in positions of the latent."""
        return min(self.height // 8, height), min(self.width // 8, width)

    def parts(self, height: int, width: int) -> list[tuple[slice, slice, Tensor]]:
        """The rows and columns of each tile of a latent, and its weights `(rows, columns)`. At every position of the
        latent the sum of the weights is 1.

        All tiles have the same size: the last ones are moved back to end with the frame. The weights fade in where the
        neighbour fades out, see `Windows`. A frame that is not larger than a tile is one tile.
        """
        rows, columns = (Windows(side // 8, self.overlap // 8) for side in (self.height, self.width))
        return [
            (row, column, row_weight[:, None] * column_weight)
            for row, row_weight in zip(rows.spans(height), rows.weights(height), strict=True)
            for column, column_weight in zip(columns.spans(width), columns.weights(width), strict=True)
        ]


def smallest(config: UNetConfig) -> int:
    """The smallest side of a tile in pixels: its deepest level then has one position of the latent."""
    return 8 * 2 ** (len(config.multipliers) - 1)


class TiledNetwork:
    """The blended predictions of a network for tiles. It is called like the network, with x `(B, C, F, h, w)`.

    Each tile is predicted separately, with its crop of the STC embeddings of the entire frames. Predictions of
    overlapping tiles are averaged (MultiDiffusion, arXiv 2302.08113). Guidance comes after that, so its `rescale` sees
    entire frames.
    """

    def __init__(self, network: Network, tiles: Tiles):
        self.network, self.tiles = network, tiles

    def __call__(self, x: Tensor, timesteps: Tensor, context: Tensor, stc: Tensor | None = None) -> Tensor:
        parts = self.tiles.parts(*x.shape[-2:])
        if len(parts) == 1:
            return self.network(x, timesteps, context, stc)
        blended = torch.zeros_like(x)
        for rows, columns, weights in parts:
            crop = None if stc is None else stc[..., rows, columns]
            prediction = self.network(x[..., rows, columns], timesteps, context, crop)
            blended[..., rows, columns] += weights.to(x) * prediction
        return blended
