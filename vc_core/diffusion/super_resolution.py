"""The sampling of VGen's super-resolution network SR600 (VGen, `inference_sr600_entrance.py`): DDIM inversion of a
video on one noise schedule, then denoising on another, which has more noise at the same timestep."""

import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..progress import Progress
from .guidance import Denoiser
from .samplers import Sampler, sample

LEVELS = 700
"""The timesteps, of 1000, up to which a video is inverted (VGen: total_noise_levels)."""
STEPS, GUIDANCE, RESCALE = 30, 9.0, 0.3
"""Steps in each direction, and guidance of the denoising, as VGen sets them."""


def inversion_schedule(steps: int = 1000, shift: float = 0.008) -> Tensor:
    """Return alphas_cumprod `(steps,)` in float64 of the cosine schedule (arXiv 2102.09672, equation 17). Its last step
    is pure noise."""
    times = torch.arange(steps + 1, dtype=torch.float64) / steps
    signal = ((times + shift) / (1 + shift) * math.pi / 2).cos().square()
    return (signal[1:] / signal[:-1]).clamp(min=1 - 0.999).cumprod(0)


def denoising_schedule(steps: int = 1000, scales: tuple[float, float] = (2.0, 4.0)) -> Tensor:
    """Return alphas_cumprod `(steps,)` in float64 of the cosine schedule over log-SNR 15 to -15, shifted for larger
    videos (arXiv 2301.11093, equations 4 to 6): by the first scale at the first timestep, by the second at the last."""
    first, last = (math.atan(math.exp(bound / 2)) for bound in (-15, 15))
    times = torch.linspace(0, 1, steps, dtype=torch.float64)
    log_snr = -2 * (first + times * (last - first)).tan().log()
    low, high = (-2 * math.log(scale) for scale in scales)
    return torch.sigmoid(log_snr + torch.lerp(torch.tensor(low).double(), torch.tensor(high).double(), times))


def check_steps(steps: int, levels: int) -> None:
    """Raise `UserError` if the schedules do not have so many steps or levels."""
    if not 1 <= steps <= levels <= 1000:
        raise UserError(
            f"steps must be from 1 to levels, and levels at most 1000. Got {steps} steps and {levels} levels."
        )


def inversion_timesteps(steps: int, levels: int) -> list[int]:
    """Return the timesteps of `invert`, ascending from 0. The last one is the noise level of its result."""
    return [*range(0, levels, levels // steps), levels - 1]


def denoising_timesteps(steps: int, levels: int) -> np.ndarray:
    """Return the timesteps `(steps,)` of `denoise`, descending from `levels` - 1. They may be fractions. Of `steps` + 1
    evenly spaced timesteps, the smallest is left out."""
    return np.arange(levels - 1, -1, -levels / (steps + 1))[:steps]


def denoising_sigmas(timesteps: np.ndarray) -> np.ndarray:
    """Return the noise levels of the denoising schedule at fractional timesteps, relative to a signal of 1."""
    schedule = denoising_schedule().numpy()
    return np.exp(np.interp(timesteps, np.arange(len(schedule)), np.log((1 - schedule) / schedule) / 2))


def invert(
    denoiser: Denoiser, x: Tensor, steps: int = STEPS, levels: int = LEVELS, progress: Progress | None = None
) -> Tensor:
    """Return the noisy latent that DDIM would denoise to `x`: DDIM backwards (arXiv 2010.02502, section 4.3), over the
    timesteps 0 to `levels` - 1 of `inversion_schedule`.

    Args:
        denoiser: predicts v, without guidance.
        x: clean latent `(B, C, F, h, w)`.
        progress: called as `progress("inverting", done, total)` after every step.
    """
    alphas, sigmas = _scales(inversion_schedule())
    grid = inversion_timesteps(steps, levels)
    for done, (t, following) in enumerate(pairwise(grid), 1):
        v = denoiser(x, torch.tensor(float(t)))
        clean, noise = alphas[t] * x - sigmas[t] * v, sigmas[t] * x + alphas[t] * v
        x = alphas[following] * clean + sigmas[following] * noise
        if progress is not None:
            progress("inverting", done, len(grid) - 1)
    return x


def denoise(
    denoiser: Denoiser, x: Tensor, steps: int = STEPS, levels: int = LEVELS, progress: Progress | None = None
) -> Tensor:
    """Return the clean latent of a noisy latent, by DPM-Solver++(2M) (arXiv 2211.01095) on `denoising_schedule` from
    timestep `levels` - 1 down.

    Args:
        denoiser: predicts v, with guidance.
        x: noisy latent `(B, C, F, h, w)`.
        progress: called as `progress("sampling", done, total)` after every step.
    """
    import diffusers

    alphas, sigmas = _scales(denoising_schedule())
    timesteps = denoising_timesteps(steps, levels)
    scheduler = diffusers.DPMSolverMultistepScheduler(prediction_type="sample", final_sigmas_type="zero")
    scheduler.set_timesteps(steps)
    scheduler.sigmas = torch.from_numpy(np.append(denoising_sigmas(timesteps), 0.0)).float()
    scheduler.set_begin_index(0)

    def clean(x: Tensor, t: Tensor) -> Tensor:  # VGen converts v at the rounded timestep that the network receives
        return alphas[int(t)] * x - sigmas[int(t)] * denoiser(x, t)

    first = scheduler.sigmas[0].item()
    rounded = torch.from_numpy(timesteps).round().float()
    sampler = Sampler(scheduler, rounded, scheduler.timesteps, {}, False)
    # VGen's solver multiplies its start by the noise level. Its exact factor would be sqrt(1 + level ** 2).
    return sample(clean, x * (first / math.hypot(1.0, first)), sampler, progress=progress)


def _scales(alphas_cumprod: Tensor) -> tuple[list[float], list[float]]:
    """Return the factors of the signal and of the noise at each timestep."""
    return alphas_cumprod.sqrt().tolist(), (1 - alphas_cumprod).sqrt().tolist()
