"""Samplers: diffusers' schedulers, set up for the network's schedule, and the loop that drives them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vc_core.config import DiffusionConfig
from vc_core.diffusion.schedule import alphas_cumprod
from vc_core.errors import UserError

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""`denoiser(x, t)`: the guided prediction for the noisy latent x at the timestep t (a scalar tensor)."""

Progress = Callable[[int, int], None]
"""`progress(done, total)` after every step; what it raises ends the sampling."""

# name -> (diffusers class, settings). `ddim` is the released loop: timesteps 1 + k * (1000 // steps), descending, as
# many as there are (more than `steps` where it does not divide 1000), the last step landing on alphas_cumprod[0].
_SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpmpp_2m": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver++", "solver_order": 2, "use_karras_sigmas": True},
    ),
    "ddim": (
        "DDIMScheduler",
        {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "leading"},
    ),
}
SAMPLERS = tuple(_SCHEDULERS)


def make_scheduler(name: str, config: DiffusionConfig, steps: int) -> Any:
    """A diffusers scheduler with its timesteps set. Raises `UserError` for an unknown name or number of steps."""
    if name not in _SCHEDULERS:
        raise UserError(f"Unknown sampler '{name}': expected one of {', '.join(SAMPLERS)}.")
    if not 1 <= steps <= config.steps:
        raise UserError(f"{steps} sampling steps are not possible: expected 1 to {config.steps}.")
    import diffusers

    kind, settings = _SCHEDULERS[name]
    scheduler = getattr(diffusers, kind)(
        num_train_timesteps=config.steps,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        beta_schedule=config.beta_schedule,
        prediction_type=config.prediction,
        **settings,
    )
    # The released schedule is computed in float64; diffusers' own differs in the sixth digit.
    scheduler.alphas_cumprod = alphas_cumprod(config).float()
    scheduler.set_timesteps(steps)
    if name == "ddim":
        scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
        grid = 1 + torch.arange(0, config.steps, config.steps // steps)
        scheduler.timesteps = grid.clamp(max=config.steps - 1).flip(0)
    return scheduler


def sample(denoiser: Denoiser, noise: Tensor, scheduler: Any, progress: Progress | None = None) -> Tensor:
    """Runs a scheduler from unit noise to a latent of the same shape."""
    x = noise * scheduler.init_noise_sigma
    total = len(scheduler.timesteps)
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(denoiser(scheduler.scale_model_input(x, t), t), t, x, return_dict=False)[0]
        if progress is not None:
            progress(i + 1, total)
    return x
