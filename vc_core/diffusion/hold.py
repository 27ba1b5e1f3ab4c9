"""Denoising each place of a video over its own part of the noise schedule: kept frames, areas, and rough drafts."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_ROUNDING = 1e-4
"""Tolerance of comparisons with a mask, whose values were averaged and may have been resized."""


@dataclass(frozen=True)
class Hold:
    """A latent that is held in place until the noise has decreased to the level of a mask (Differential Diffusion,
    arXiv 2306.00950; with two values it is the dual clock of Time-to-Move, arXiv 2511.08633).

    At each step, the places that are still held are replaced by the latent, noised to the level of the step, and the
    prediction there by the one that leads to the latent. So a held place stays exactly on its path until it is
    released, also with samplers that remember earlier predictions, and as in ComfyUI.

    Attributes:
        latent: `(B or 1, C, F, h, w)`, clean, in the units of the sampler.
        noise: `(B, C, F, h, w)`, the noise that the video starts from.
        mask: `(B or 1, 1, F, h, w)`, the fraction of the noise schedule over which each place is denoised: 0 keeps the
            latent, 1 is free from the first step on.
        steps: number of steps of the noise schedule.
    """

    latent: Tensor
    noise: Tensor
    mask: Tensor
    steps: int

    def free(self, t: Tensor) -> Tensor:
        """Return where the latent is no longer held at timestep t, a bool tensor of the mask's shape."""
        position = min(float(t) / (self.steps - 1), 1.0)
        return (self.mask > 0) & (self.mask >= position - _ROUNDING)

    def idle_steps(self, timesteps: Tensor) -> int:
        """Return the number of first steps in which everything is held, so that they change nothing."""
        return sum(not self.free(t).any() for t in timesteps)

    def noisy(self, scheduler: Any, key: Tensor) -> Tensor:
        """Return the latent at the noise level of a scheduler's timestep `key`."""
        return scheduler.add_noise(self.latent, self.noise, key[None])

    def prediction(self, scheduler: Any, key: Tensor) -> Tensor:
        """Return what a network that knows the latent predicts for `noisy`."""
        if scheduler.config.prediction_type == "epsilon":
            return self.noise
        signal, noise = scheduler.add_noise(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), key[None]).tolist()
        return (signal * self.noise - noise * self.latent) / math.hypot(signal, noise)

    def keep(self, x: Tensor, replacement: Tensor, t: Tensor) -> Tensor:
        """Return x with the places that are held at timestep t replaced."""
        return torch.where(self.free(t), x, replacement)


def reduced(mask: Tensor) -> Tensor:
    """Return a mask `(B, 1, F, H, W)` at the size of the latent: the mean of each 8x8 pixels. Frames stay frames."""
    return F.avg_pool3d(mask.float(), (1, 8, 8))
