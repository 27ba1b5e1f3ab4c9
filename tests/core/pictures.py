"""Clips that tests of annotators look at."""

import torch
import torch.nn.functional as F


def clip(height: int = 24, width: int = 32, frames: int = 3, batch: int = 1) -> torch.Tensor:
    """Smooth random colours (batch, 3, frames, height, width) in [0, 1]."""
    coarse = torch.rand(batch * frames, 3, height // 8, width // 8, generator=torch.Generator().manual_seed(0))
    fine = F.interpolate(coarse, (height, width), mode="bilinear")
    return fine.unflatten(0, (batch, frames)).transpose(1, 2)
