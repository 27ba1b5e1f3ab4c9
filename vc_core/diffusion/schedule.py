"""The noise schedule, as the network was trained on it."""

import torch
from torch import Tensor

from ..config import DiffusionConfig

LEAST = 4.8973451890853435e-08
"""Share of the signal that stands for none at the end of a schedule with zero terminal SNR."""


def alphas_cumprod(config: DiffusionConfig) -> Tensor:
    """The share of the signal's variance that is left at each training step, `(steps,)` in float64.

    With `zero_terminal_snr` rescaled so that nothing is left at the last one (arXiv 2305.08891, section 3.1).
    """
    start, end, steps = config.beta_start, config.beta_end, config.steps
    if config.beta_schedule == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    else:
        betas = torch.linspace(start, end, steps, dtype=torch.float64)
    alphas = (1.0 - betas).cumprod(0)
    if not config.zero_terminal_snr:
        return alphas
    # Algorithm 1 there. Samplers divide by the last one, so it is what ComfyUI takes for zero.
    signal = alphas.sqrt()
    signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
    return (signal**2).clamp(min=LEAST)
