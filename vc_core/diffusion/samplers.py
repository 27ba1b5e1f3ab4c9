"""Samplers: diffusers' schedulers, set up for the network's schedule, and the loop that drives them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import DiffusionConfig
from ..errors import UserError
from ..progress import Progress

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""`denoiser(x, t)`: the guided prediction for the noisy latent x at the timestep t, a scalar tensor, whole or not."""


@dataclass(frozen=True)
class Sampler:
    """One run of a diffusers scheduler.

    Attributes:
        timesteps: `(steps,)` float32, descending from at most `config.steps - 1`: what the network is told.
        keys: the same steps as the scheduler names them.
        begin: index of the first step that is run; above 0 where a video is only denoised in part.
        settings: further arguments of every `scheduler.step`.
        noisy: whether the steps draw noise.
    """

    scheduler: Any
    timesteps: Tensor
    keys: Tensor
    begin: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    noisy: bool = False

    def start(self, noise: Tensor, latent: Tensor | None = None) -> Tensor:
        """The noisy latent of the first step: of noise alone, or of a clean latent of the same shape."""
        if latent is None:
            return noise * self.scheduler.init_noise_sigma
        return self.scheduler.add_noise(latent, noise, self.keys[self.begin : self.begin + 1])


def sample(
    denoiser: Denoiser,
    x: Tensor,
    sampler: Sampler,
    generators: Sequence[torch.Generator] = (),
    progress: Progress | None = None,
) -> Tensor:
    """Runs a sampler from what `sampler.start` gave, `(B, ...)`, to a latent of the same shape.

    Args:
        generators: one for each of the batch, for samplers that are `noisy`.
        progress: called as `progress("sampling", done, total)` after every step.
    """
    scheduler, total = sampler.scheduler, len(sampler.timesteps) - sampler.begin
    settings = {**sampler.settings, **({"generator": list(generators)} if sampler.noisy else {})}
    for i, (t, key) in enumerate(zip(sampler.timesteps[sampler.begin :], sampler.keys[sampler.begin :], strict=True)):
        prediction = denoiser(scheduler.scale_model_input(x, key), t)
        x = scheduler.step(prediction, key, x, **settings, return_dict=False)[0]
        if progress is not None:
            progress("sampling", i + 1, total)
    return x


# --- The table ------------------------------------------------------------------------------------------------------


def _the_last(timesteps: Tensor, steps: int, highest: float) -> int:
    """Index from which as many steps are left as were asked for."""
    return len(timesteps) - steps


def _from_highest(timesteps: Tensor, steps: int, highest: float) -> int:
    """Index of the first step of at most the highest timestep, for a grid that may have more steps than asked for."""
    return min(int((timesteps > highest).sum()), len(timesteps) - 1)


@dataclass(frozen=True)
class _Row:
    """A sampler: diffusers' class, its settings, what sets up its steps, and what finds the first of a part of them."""

    kind: str
    settings: Mapping[str, Any]
    arrange: Callable[[type, dict[str, Any], DiffusionConfig, int], Sampler]
    takes_eta: bool = False
    begin: Callable[[Tensor, int, float], int] = _the_last


def _by_sigmas(
    kind: type, settings: dict[str, Any], config: DiffusionConfig, steps: int, sigmas: Tensor | None = None
) -> Sampler:
    """Solvers over Karras' noise levels (arXiv 2206.00364), from the highest of the schedule down to its lowest, and 0;
    or over given ones, `sigmas`, of which the network is told the nearest whole timesteps.

    diffusers rounds their timesteps to whole ones, and so tells the network of another noise than there is: a fifth
    more or less at the end. The network takes fractions, so it is told the truth.
    """
    alphas = config.alphas_cumprod
    scheduler = kind(**settings)
    scheduler.alphas_cumprod = alphas  # in float64, from which set_timesteps makes its float32 sigmas
    levels = ((1 - alphas) / alphas).sqrt()
    # Else Euler takes its range from `steps` of the levels, which lacks the highest ones.
    scheduler.register_to_config(sigma_min=levels[0].item(), sigma_max=levels[-1].item())
    scheduler.set_timesteps(steps)
    if sigmas is not None:
        scheduler.sigmas = sigmas.float().cpu()
        told = (scheduler.sigmas[:-1, None].log() - levels.log()).abs().argmin(dim=1)
        return Sampler(scheduler, told.float(), scheduler.timesteps)
    told = np.interp(scheduler.sigmas[:-1].double().log().numpy(), levels.log().numpy(), np.arange(config.steps))
    return Sampler(scheduler, torch.from_numpy(told).float(), scheduler.timesteps)


def _ddim(kind: type, settings: dict[str, Any], config: DiffusionConfig, steps: int) -> Sampler:
    """Even steps from the last timestep down to a clean latent ("trailing" in arXiv 2305.08891, table 2).

    diffusers finds the previous step as t - 1000 // steps, which leaves its own grid wherever steps does not divide
    1000. So the scheduler is given the schedule of these steps alone, where the previous one is t - 1.
    """
    grid = np.round(np.arange(1, steps + 1) * config.steps / steps).astype(np.int64) - 1
    scheduler = kind(**{**settings, "num_train_timesteps": steps})
    scheduler.alphas_cumprod = config.alphas_cumprod.float()[grid]
    scheduler.set_timesteps(steps)
    return Sampler(scheduler, torch.from_numpy(grid).float().flip(0), scheduler.timesteps)


def _ddim_released(kind: type, settings: dict[str, Any], config: DiffusionConfig, steps: int) -> Sampler:
    """The released loop: timesteps 1 + k * (1000 // steps), descending, as many as there are (more than `steps` where
    it does not divide 1000), the last step landing on alphas_cumprod[0]."""
    scheduler = kind(**settings)
    scheduler.alphas_cumprod = config.alphas_cumprod.float()
    scheduler.set_timesteps(steps)
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    scheduler.timesteps = _released_grid(config, steps)
    return Sampler(scheduler, scheduler.timesteps.float(), scheduler.timesteps)


def _released_grid(config: DiffusionConfig, steps: int) -> Tensor:
    return (1 + torch.arange(0, config.steps, config.steps // steps)).clamp(max=config.steps - 1).flip(0)


def _lcm(kind: type, settings: dict[str, Any], config: DiffusionConfig, steps: int) -> Sampler:
    """Multistep consistency sampling on the 50 timesteps of the distillation (arXiv 2310.04378, section 4.3), where
    the run fits on them; else on all timesteps."""
    original = 50 if steps <= 50 and config.steps % 50 == 0 else config.steps
    # c_skip and c_out are functions of the place in the schedule, so of 1000 timesteps.
    scaling = 10.0 * 1000 / config.steps
    scheduler = kind(**settings, original_inference_steps=original, timestep_scaling=scaling)
    scheduler.alphas_cumprod = config.alphas_cumprod.float()
    scheduler.set_timesteps(steps)
    return Sampler(scheduler, scheduler.timesteps.float(), scheduler.timesteps, noisy=True)


_KARRAS = {"use_karras_sigmas": True}
_TABLE = {
    "dpmpp_2m": _Row("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", **_KARRAS}, _by_sigmas),
    "unipc": _Row("UniPCMultistepScheduler", _KARRAS, _by_sigmas),
    # "leading" makes unit noise of its first network input, as it is in the others.
    "euler": _Row("EulerDiscreteScheduler", {"timestep_spacing": "leading", **_KARRAS}, _by_sigmas),
    "lcm": _Row("LCMScheduler", {"clip_sample": False}, _lcm),
    "ddim": _Row("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": True}, _ddim, takes_eta=True),
    "ddim_released": _Row(
        "DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}, _ddim_released, True, _from_highest
    ),
}
SAMPLERS = tuple(_TABLE)


def released_timesteps(config: DiffusionConfig, steps: int, denoise: float = 1.0) -> Tensor:
    """The timesteps that `ddim_released` runs, descending, whole numbers; see `make_sampler`, which raises the same."""
    grid = _released_grid(config, _total(config, steps, denoise))
    return grid[_begin(_from_highest, grid, steps, denoise, config) :]


def make_sampler(
    name: str,
    config: DiffusionConfig,
    steps: int,
    denoise: float = 1.0,
    eta: float = 0.0,
    sigmas: Tensor | None = None,
) -> Sampler:
    """A sampler for the schedule that a network was trained on.

    Args:
        name: one of `SAMPLERS`.
        steps: that are run, from 1 to `config.steps`.
        denoise: share of the noise schedule that is run, in (0, 1]. As in ComfyUI, the steps are the last `steps` of
            int(steps / denoise). `ddim_released` begins at the first timestep of its grid that is at most
            denoise * `config.steps`, and runs as many as follow, which are more than `steps` where int(steps / denoise)
            does not divide `config.steps`.
        eta: share of fresh noise in each step of the DDIMs, in [0, 1] (arXiv 2010.02502, equation 16): 0 is
            deterministic, 1 is DDPM.
        sigmas: noise levels `(steps + 1,)` to run on instead of the sampler's own, descending, the last one 0: as
            k-diffusion and ComfyUI have them, the standard deviation of the noise beside a signal of 1. For
            `dpmpp_2m`, `unipc` and `euler`. The network is told the nearest whole timesteps, as there.

    Raises:
        UserError: unknown name, or a number out of its range.
    """
    if name not in _TABLE:
        raise UserError(f"Unknown sampler '{name}': expected one of {', '.join(SAMPLERS)}.")
    total, row = _total(config, steps, denoise), _TABLE[name]
    if sigmas is not None and (row.arrange is not _by_sigmas or len(sigmas) != steps + 1 or denoise != 1.0):
        takers = ", ".join(other for other, row in _TABLE.items() if row.arrange is _by_sigmas)
        raise UserError(
            f"{len(sigmas)} sigmas were given to '{name}' for {steps} steps at denoise {denoise}: expected one of "
            f"{takers}, {steps + 1} sigmas and denoise 1."
        )
    if not 0.0 <= eta <= 1.0:
        raise UserError(f"eta {eta} is not possible: expected 0 to 1.")
    if eta and not row.takes_eta:
        takers = ", ".join(other for other, row in _TABLE.items() if row.takes_eta)
        raise UserError(f"eta {eta} means nothing to the sampler '{name}': leave it at 0, or use one of {takers}.")
    import diffusers

    settings = {
        "num_train_timesteps": config.steps,
        "beta_start": config.beta_start,
        "beta_end": config.beta_end,
        "beta_schedule": config.beta_schedule,
        "prediction_type": config.prediction,
        **row.settings,
    }
    given = {} if sigmas is None else {"sigmas": sigmas}
    sampler = row.arrange(getattr(diffusers, row.kind), settings, config, total, **given)
    begin = _begin(row.begin, sampler.timesteps, steps, denoise, config)
    if hasattr(sampler.scheduler, "set_begin_index"):
        # Else diffusers looks the first step up by its timestep, which several steps can share.
        sampler.scheduler.set_begin_index(begin)
    return Sampler(
        sampler.scheduler,
        sampler.timesteps,
        sampler.keys,
        begin,
        {"eta": eta} if eta else {},
        sampler.noisy or eta > 0.0,
    )


def _total(config: DiffusionConfig, steps: int, denoise: float) -> int:
    """The steps of which the last `steps` are run, int(steps / denoise). Raises `UserError` out of range."""
    if not 1 <= steps <= config.steps:
        raise UserError(f"{steps} sampling steps are not possible: expected 1 to {config.steps}.")
    if not 0.0 < denoise <= 1.0:
        raise UserError(f"denoise {denoise} is not possible: expected more than 0 and at most 1.")
    total = int(steps / denoise)
    if total > config.steps:
        raise UserError(
            f"{steps} steps at denoise {denoise} are the last of {total}, and at most {config.steps} are possible: "
            "expected fewer steps or a larger denoise."
        )
    return total


def _begin(
    find: Callable[[Tensor, int, float], int], timesteps: Tensor, steps: int, denoise: float, config: DiffusionConfig
) -> int:
    # Rounded, as 0.29 * 100 is less than 29.
    return find(timesteps, steps, round(denoise * config.steps, 6)) if denoise < 1.0 else 0
