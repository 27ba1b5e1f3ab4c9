"""The mathematics of consistency distillation: a network learns to sample in few steps what its teacher samples in many
(VideoLCM, arXiv 2312.09109, after LCM, arXiv 2310.04378), as VGen's public training does.

The student maps a noisy video at any of `LCM_TIMESTEPS` timesteps to a clean one. It learns that its result does not
change along the teacher's path: a guided DDIM step of the teacher leads from one timestep to the previous one, where
the result of the target network, an average of the student, is what the student should have predicted.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.objective import draw_timesteps, moving_weight
from vc_core.config import DiffusionConfig
from vc_core.diffusion.samplers import LCM_TIMESTEPS, lcm_scaling, lcm_timesteps

SIGMA_DATA = 0.5
"""Of the boundary condition, as in the sampler `lcm`."""


class Consistency:
    """The student's result, the teacher's step, and the loss. Videos and predictions are `(B, C, F, h, w)` in float32,
    timesteps `(B,)`."""

    def __init__(self, config: DiffusionConfig, huber: float):
        self.config, self.huber = config, huber
        self.alphas_cumprod = config.alphas_cumprod.float()
        self.grid = lcm_timesteps(config, LCM_TIMESTEPS).flip(0)
        """The timesteps that the sampler `lcm` chooses from: 19, 39, ..., 999."""

    def draw(self, seed: int, numbers: list[int]) -> tuple[Tensor, Tensor]:
        """Return the timesteps before and after the teacher's step of the samples with these numbers. All of the grid
        are equally frequent; below its first is timestep 0."""
        return self.pair(draw_timesteps(seed, numbers, len(self.grid)))

    def pair(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the timesteps of the grid with these indices, and the ones below them, `(B,)`."""
        below = torch.cat([self.grid.new_zeros(1), self.grid[:-1]])
        return self.grid[index], below[index]

    def amplitudes(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the amplitudes of signal and noise, `(B, 1, 1, 1, 1)`."""
        alpha = self.alphas_cumprod.to(timesteps.device)[timesteps].view(-1, 1, 1, 1, 1)
        return alpha.sqrt(), (1 - alpha).sqrt()

    def separated(self, x: Tensor, prediction: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the clean latent and the noise that a network's prediction says x consists of."""
        (signal, sigma), prediction = self.amplitudes(timesteps), prediction.float()
        if self.config.prediction == "epsilon":
            return (x - sigma * prediction) / signal, prediction
        return signal * x - sigma * prediction, signal * prediction + sigma * x

    def result(self, x: Tensor, prediction: Tensor, timesteps: Tensor) -> Tensor:
        """Return the student's result for x: its clean latent, blended with x itself, so that x is the result at
        timestep 0 (arXiv 2310.04378, equation 9)."""
        scaled = (lcm_scaling(self.config) * timesteps.float()).view(-1, 1, 1, 1, 1)
        square = scaled.square() + SIGMA_DATA**2
        return SIGMA_DATA**2 / square * x + scaled / square.sqrt() * self.separated(x, prediction, timesteps)[0]

    def stepped(self, x: Tensor, prediction: Tensor, timesteps: Tensor, below: Tensor) -> Tensor:
        """Return x after a DDIM step from `timesteps` to `below`."""
        clean, noise = self.separated(x, prediction, timesteps)
        signal, sigma = self.amplitudes(below)
        return signal * clean + sigma * noise

    def losses(self, result: Tensor, target: Tensor, latents: Tensor, gain: float = 0.0) -> Tensor:
        """Return the loss of each sample, `(B,)`: the mean pseudo-Huber distance. For `gain` see `moving_weight`."""
        distance = ((result - target).square() + self.huber**2).sqrt() - self.huber
        if gain:
            distance = distance * moving_weight(latents, gain)
        return distance.mean((1, 2, 3, 4))
