"""SR600's way of refining a video (VGen, `inference_sr600_entrance.py`): noise is found that leads to the video by one
schedule, and denoised by another, which keeps more of the noise at the same timestep."""

import math

import numpy as np
import torch
from torch import Tensor

from ..progress import Progress
from .guidance import Denoiser
from .samplers import Sampler, sample

LEVELS = 700
"""Timesteps of a schedule's 1000 that are inverted and denoised (VGen: total_noise_levels)."""
STEPS, GUIDANCE, RESCALE = 30, 9.0, 0.3
"""Steps in each direction, and guidance of the denoising, as released."""


def inversion_schedule(steps: int = 1000, shift: float = 0.008) -> Tensor:
    """alphas_cumprod `(steps,)` in float64 of the cosine schedule (arXiv 2102.09672, equation 17), whose last step is
    noise alone."""
    times = torch.arange(steps + 1, dtype=torch.float64) / steps
    signal = ((times + shift) / (1 + shift) * math.pi / 2).cos().square()
    return (signal[1:] / signal[:-1]).clamp(min=1 - 0.999).cumprod(0)


def denoising_schedule(steps: int = 1000, scales: tuple[float, float] = (2.0, 4.0)) -> Tensor:
    """alphas_cumprod `(steps,)` of a cosine schedule by log-SNR, -15 to 15, shifted for videos `scales` times as large
    (arXiv 2301.11093, equations 4 to 6): by the first at the first timestep, by the second at the last."""
    first, last = (math.atan(math.exp(bound / 2)) for bound in (-15, 15))
    times = torch.linspace(0, 1, steps, dtype=torch.float64)
    log_snr = -2 * (first + times * (last - first)).tan().log()
    low, high = (-2 * math.log(scale) for scale in scales)
    return torch.sigmoid(log_snr + torch.lerp(torch.tensor(low).double(), torch.tensor(high).double(), times))


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
    grid = range(0, levels, levels // steps)
    for i, t in enumerate(grid):
        to = min(t + levels // steps, levels - 1)
        v = denoiser(x, torch.tensor(float(t)))
        clean, noise = alphas[t] * x - sigmas[t] * v, sigmas[t] * x + alphas[t] * v
        x = alphas[to] * clean + sigmas[to] * noise
        if progress is not None:
            progress("inverting", i + 1, len(grid))
    return x


def denoise(
    denoiser: Denoiser, x: Tensor, steps: int = STEPS, levels: int = LEVELS, progress: Progress | None = None
) -> Tensor:
    """Return the clean latent of a noisy one, by DPM-Solver++(2M) (arXiv 2211.01095) from timestep `levels` - 1 of
    `denoising_schedule` down. Of `steps` + 1 evenly spaced timesteps, the smallest is left out.

    Args:
        denoiser: predicts v, with guidance.
        x: noisy latent `(B, C, F, h, w)`.
        progress: called as `progress("sampling", done, total)` after every step.
    """
    import diffusers

    schedule = denoising_schedule()
    alphas, sigmas = _scales(schedule)
    times = np.arange(levels - 1, -1, -levels / (steps + 1))[:steps]
    log_sigmas = np.interp(times, np.arange(len(schedule)), ((1 - schedule) / schedule).sqrt().log().numpy())
    scheduler = diffusers.DPMSolverMultistepScheduler(prediction_type="sample", final_sigmas_type="zero")
    scheduler.set_timesteps(steps)
    scheduler.sigmas = torch.from_numpy(np.append(np.exp(log_sigmas), 0.0)).float()
    scheduler.set_begin_index(0)

    def clean(x: Tensor, t: Tensor) -> Tensor:  # VGen takes v at the whole timestep that the network is asked at
        return alphas[int(t)] * x - sigmas[int(t)] * denoiser(x, t)

    first = scheduler.sigmas[0].item()
    timesteps = torch.from_numpy(times).round().float()
    sampler = Sampler(scheduler, timesteps, scheduler.timesteps, {}, False)
    return sample(clean, x * (first / math.hypot(1.0, first)), sampler, progress=progress)


def _scales(alphas_cumprod: Tensor) -> tuple[list[float], list[float]]:
    """What signal and noise are multiplied by at each timestep."""
    return alphas_cumprod.sqrt().tolist(), (1 - alphas_cumprod).sqrt().tolist()
