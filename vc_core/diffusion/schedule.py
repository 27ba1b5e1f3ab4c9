"""The noise schedule, as the network was trained on it."""

import torch
from torch import Tensor

from ..config import DiffusionConfig


def alphas_cumprod(config: DiffusionConfig) -> Tensor:
    """The share of the signal's variance that is left at each training step, `(steps,)` in float64."""
    start, end, steps = config.beta_start, config.beta_end, config.steps
    if config.beta_schedule == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    else:
        betas = torch.linspace(start, end, steps, dtype=torch.float64)
    return (1.0 - betas).cumprod(0)
