"""Samplers: diffusers' schedulers, set up for the network's noise schedule, and the sampling loop."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import Config, DiffusionConfig
from ..errors import UserError, check_type, shown
from ..progress import Progress
from .guidance import Denoiser
from .hold import Hold
from .noise import NOISES
from .tiles import Tiles
from .windows import Windows

LCM_TIMESTEPS = 50
"""Number of timesteps that networks for few steps are distilled on."""


@dataclass(frozen=True)
class Sampling:
    """How a video is sampled.

    Attributes:
        sampler: one of `SAMPLERS`; `ddim_released` is the released loop, `lcm` is for networks distilled for it.
            None: the checkpoint's default.
        steps: number of steps, 1 to the schedule's 1000; None: the checkpoint's default.
        denoise: fraction of the noise schedule to run, in (0, 1]: below 1 to change an init video. With a denoise
            mask, it is the largest value of the mask that has an effect. As in ComfyUI, these
            are the last `steps` of int(steps / denoise) steps. `ddim_released` starts at the first timestep of its grid
            that is at most denoise times the schedule's last, and runs the rest of the grid. This is more than `steps`
            if int(steps / denoise) does not divide the schedule.
        eta: fraction of new noise in each step of the DDIM samplers, in [0, 1] (arXiv 2010.02502, equation 16): 0 is
            deterministic, 1 is DDPM.
        sigmas: noise levels that replace the sampler's own: `steps` + 1 values, descending, the last one 0. As in
            k-diffusion and ComfyUI, each is the standard deviation of the noise for a signal of 1. Only for `dpmpp_2m`,
            `unipc` and `euler`. The network receives the nearest integer timesteps, also as in ComfyUI.
        guidance: scale of the classifier-free guidance by text and style; 1: no guidance; None: the checkpoint's
            default.
        condition_guidance: scale of a further guidance by the spatial and temporal conditions. 1 (released): they are
            on both sides. Other values need a third prediction at every step. See
            `vc_core.diffusion.guidance.combine`.
        rescale: 0 to 1, against the overexposure of high guidance (arXiv 2305.08891, section 3.4).
        windows: how to split videos that are longer than a window. None: windows of the frames that the checkpoint was
            trained for, which overlap by half. See `Windows`.
        tiles: how to split frames that are larger than a tile. None: entire frames. See `Tiles`.
        noise: the noise to start from, a key of `vc_core.diffusion.noise.NOISES`.

    Raises:
        UserError: an unknown sampler or noise, or a number with a wrong type or out of range.
    """

    sampler: str | None = None
    steps: int | None = None
    denoise: float = 1.0
    eta: float = 0.0
    sigmas: Tensor | None = None
    guidance: float | None = None
    condition_guidance: float = 1.0
    rescale: float = 0.0
    windows: Windows | None = None
    tiles: Tiles | None = None
    noise: str = "independent"

    def __post_init__(self) -> None:
        if self.noise not in NOISES:
            raise UserError(f"Unknown noise '{self.noise}'. Expected one of {', '.join(NOISES)}.")
        check_type("steps", self.steps, Integral | None, "an integer")
        check_type("sigmas", self.sigmas, Tensor | None, "a tensor of `steps` + 1 noise levels")
        check_type("windows", self.windows, Windows | None, "a Windows, such as Windows(16)")
        for name in ("guidance", "condition_guidance", "rescale", "eta", "denoise"):
            value = getattr(self, name)
            if value is None and name == "guidance":
                continue
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise UserError(f"{name} must be a finite number, got {shown(value)}.")
        for name in ("rescale", "eta"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"{name} must be from 0 to 1, got {getattr(self, name)}.")
        if self.sampler is None:  # `filled` checks the rest with the checkpoint's sampler
            return
        if self.sampler not in SAMPLERS:
            raise UserError(f"Unknown sampler '{self.sampler}'. Expected one of {', '.join(SAMPLERS)}.")
        if self.eta and self.sampler not in _WITH_ETA:
            raise UserError(
                f"The sampler '{self.sampler}' does not support eta {self.eta}. Set eta to 0, or use one of "
                f"{', '.join(_WITH_ETA)}."
            )
        if self.sigmas is not None and not (self.sampler in _WITH_SIGMAS and self.denoise == 1.0):
            raise UserError(
                f"sigmas require denoise 1 and one of the samplers {', '.join(_WITH_SIGMAS)}. "
                f"Got {len(self.sigmas)} sigmas for the sampler '{self.sampler}' and denoise {self.denoise}."
            )

    def filled(self, config: Config) -> "Sampling":
        """Replace None by the checkpoint's defaults. Raise `UserError` if the other settings do not fit these."""
        return replace(
            self,
            sampler=self.sampler or config.sampler,
            steps=config.steps if self.steps is None else self.steps,
            guidance=config.guidance if self.guidance is None else self.guidance,
        )


@dataclass(frozen=True)
class Sampler:
    """One run of a diffusers scheduler.

    Attributes:
        timesteps: `(steps,)` float32, descending from at most `config.steps - 1`: the network's input.
        keys: the same steps as the scheduler's timesteps.
        settings: further arguments of every `scheduler.step`.
        noisy: whether the steps add noise.
    """

    scheduler: Any
    timesteps: Tensor
    keys: Tensor
    settings: Mapping[str, Any]
    noisy: bool

    def start(self, noise: Tensor, latent: Tensor | None = None) -> Tensor:
        """The noisy latent of the first step: from noise only, or from noise and a clean latent of the same shape."""
        if latent is None:
            return noise * self.scheduler.init_noise_sigma
        return self.scheduler.add_noise(latent, noise, self.keys[:1])

    def without_first(self, count: int) -> "Sampler":
        """This run without its first steps."""
        if count and hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(self.scheduler.begin_index + count)
        return replace(self, timesteps=self.timesteps[count:], keys=self.keys[count:])


def sample(
    denoiser: Denoiser,
    x: Tensor,
    sampler: Sampler,
    generators: Sequence[torch.Generator] = (),
    progress: Progress | None = None,
    hold: Hold | None = None,
) -> Tensor:
    """Run a sampler from the result of `sampler.start`, `(B, ...)`, to a clean latent of the same shape.

    Args:
        generators: one for each video of the batch, for samplers that are `noisy`.
        progress: called as `progress("sampling", done, total)` after every step.
        hold: a latent of which each place is held for a part of the steps. Steps without a free place are skipped.
    """
    last = sampler.timesteps[-1]
    if hold is not None and (idle := hold.idle_steps(sampler.timesteps)):
        sampler = sampler.without_first(idle)
        x = hold.noisy(sampler.scheduler, sampler.keys[0]) if len(sampler.keys) else x
    scheduler, total = sampler.scheduler, len(sampler.timesteps)
    settings = {**sampler.settings, **({"generator": list(generators)} if sampler.noisy else {})}
    for i, (t, key) in enumerate(zip(sampler.timesteps, sampler.keys, strict=True)):
        if hold is not None:
            x = hold.keep(x, hold.noisy(scheduler, key), t)
        prediction = denoiser(scheduler.scale_model_input(x, key), t)
        if hold is not None:
            prediction = hold.keep(prediction, hold.prediction(scheduler, key), t)
        x = scheduler.step(prediction, key, x, **settings, return_dict=False)[0]
        if progress is not None:
            progress("sampling", i + 1, total)
    return x if hold is None else hold.keep(x, hold.latent, last)


# --- The table ------------------------------------------------------------------------------------------------------


Arranged = tuple[Any, Tensor]
"""A scheduler with its steps set, and the network's timestep at each of its `timesteps`."""


def _by_sigmas(make: Callable, config: DiffusionConfig, steps: int, sigmas: Tensor | None = None) -> Arranged:
    """Solvers over Karras' noise levels (arXiv 2206.00364), from the schedule's highest level to its lowest, then 0; or
    over `sigmas`, for which the network receives the nearest integer timesteps.

    For Karras' levels, diffusers rounds the timesteps to integers. The network then assumes a wrong noise level, wrong
    by up to a fifth at the end. It accepts fractions, so it receives the exact timesteps here.
    """
    alphas, scheduler = config.alphas_cumprod, make()
    scheduler.alphas_cumprod = alphas  # in float64; set_timesteps computes its float32 sigmas from it
    levels = ((1 - alphas) / alphas).sqrt()
    # Otherwise Euler takes its range from `steps` of the levels, which do not include the highest ones.
    scheduler.register_to_config(sigma_min=levels[0].item(), sigma_max=levels[-1].item())
    scheduler.set_timesteps(steps)
    if sigmas is not None:
        scheduler.sigmas = sigmas.float().cpu()
        return scheduler, (scheduler.sigmas[:-1, None].log() - levels.log()).abs().argmin(dim=1)
    exact = np.interp(scheduler.sigmas[:-1].double().log().numpy(), levels.log().numpy(), np.arange(config.steps))
    return scheduler, torch.from_numpy(exact)


def _ddim(make: Callable, config: DiffusionConfig, steps: int) -> Arranged:
    """Even steps from the last timestep down to a clean latent ("trailing" in arXiv 2305.08891, table 2).

    diffusers computes the previous step as t - 1000 // steps, which is not on its grid if steps does not divide 1000.
    So the scheduler gets a schedule of these steps only, in which the previous step is t - 1.
    """
    grid = np.round(np.arange(1, steps + 1) * config.steps / steps).astype(np.int64) - 1
    scheduler = make(num_train_timesteps=steps)
    scheduler.alphas_cumprod = config.alphas_cumprod.float()[grid]
    scheduler.set_timesteps(steps)
    return scheduler, torch.from_numpy(grid).flip(0)


def _ddim_released(make: Callable, config: DiffusionConfig, steps: int) -> Arranged:
    """The released loop: all timesteps 1 + k * (1000 // steps), descending (more than `steps` if it does not divide
    1000). The last step ends at alphas_cumprod[0]."""
    scheduler = make()
    scheduler.alphas_cumprod = config.alphas_cumprod.float()
    scheduler.set_timesteps(steps)
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    scheduler.timesteps = _released_grid(config, steps)
    return scheduler, scheduler.timesteps


def _released_grid(config: DiffusionConfig, steps: int) -> Tensor:
    return (1 + torch.arange(0, config.steps, config.steps // steps)).clamp(max=config.steps - 1).flip(0)


def _lcm(make: Callable, config: DiffusionConfig, steps: int) -> Arranged:
    """Multistep consistency sampling, see `lcm_timesteps`."""
    scheduler = make(original_inference_steps=_distilled(config, steps), timestep_scaling=lcm_scaling(config))
    scheduler.alphas_cumprod = config.alphas_cumprod.float()
    scheduler.set_timesteps(steps)
    return scheduler, scheduler.timesteps


def _distilled(config: DiffusionConfig, steps: int) -> int:
    return LCM_TIMESTEPS if steps <= LCM_TIMESTEPS and config.steps % LCM_TIMESTEPS == 0 else config.steps


def lcm_scaling(config: DiffusionConfig) -> float:
    """The factor on timesteps in c_skip and c_out of `lcm`, which are functions of the position in 1000 steps."""
    return 10.0 * 1000 / config.steps


@dataclass(frozen=True)
class _Row:
    """A sampler.

    Attributes:
        scheduler: name of diffusers' class.
        settings: its settings, besides the noise schedule and the prediction.
        arrange: `arrange(make, config, steps)` creates the scheduler with `make`, sets up `steps` steps over the entire
            noise schedule, and returns it with the network's timestep at each of its `timesteps`, descending. It may
            return more steps; then `begin` says where a run starts.
        begin: `begin(timesteps, config, denoise, steps)`: the index of the first step to run.
        noisy: whether every step adds noise. Such a scheduler's `step` accepts `generator`.
        eta: whether `step` accepts `eta`, the fraction of new noise, and `generator`.
        sigmas: whether `arrange` accepts `sigmas`.
    """

    scheduler: str
    settings: Mapping[str, Any]
    arrange: Callable[..., Arranged]
    begin: Callable[[Tensor, DiffusionConfig, float, int], int] = lambda timesteps, config, denoise, steps: (
        len(timesteps) - steps
    )
    noisy: bool = False
    eta: bool = False
    sigmas: bool = False


def _released_begin(timesteps: Tensor, config: DiffusionConfig, denoise: float, steps: int) -> int:
    highest = round(denoise * config.steps, 6)  # because 0.29 * 100 is less than 29
    return min(int((timesteps > highest).sum()), len(timesteps) - 1)


_KARRAS = {"use_karras_sigmas": True}
_ROWS = {
    "dpmpp_2m": _Row("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", **_KARRAS}, _by_sigmas,
                     sigmas=True),
    "unipc": _Row("UniPCMultistepScheduler", _KARRAS, _by_sigmas, sigmas=True),
    # With "leading", the noise in its first network input has unit variance, as in the others.
    "euler": _Row("EulerDiscreteScheduler", {"timestep_spacing": "leading", **_KARRAS}, _by_sigmas, sigmas=True),
    "lcm": _Row("LCMScheduler", {"clip_sample": False}, _lcm, noisy=True),
    "ddim": _Row("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": True}, _ddim, eta=True),
    "ddim_released": _Row("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}, _ddim_released,
                          _released_begin, eta=True),
}  # fmt: skip
SAMPLERS = tuple(_ROWS)
_WITH_ETA = tuple(name for name, row in _ROWS.items() if row.eta)
_WITH_SIGMAS = tuple(name for name, row in _ROWS.items() if row.sigmas)


def released_timesteps(config: DiffusionConfig, steps: int, denoise: float = 1.0) -> Tensor:
    """The timesteps that `ddim_released` runs, descending integers. Raise the same errors as `make_sampler`."""
    grid = _released_grid(config, _total(config, steps, denoise))
    return grid[_released_begin(grid, config, denoise, steps) :]


def lcm_timesteps(config: DiffusionConfig, steps: int, denoise: float = 1.0) -> Tensor:
    """The timesteps that `lcm` runs, descending integers. Raise the same errors as `make_sampler`.

    They are `steps` of the distillation's timesteps (arXiv 2310.04378, section 4.3), evenly from the last down: 999,
    759, 499, 259 for 4 steps. For more steps than the distillation has, they are chosen from all timesteps.
    """
    total = _total(config, steps, denoise)
    count = _distilled(config, total)
    indices = np.linspace(0, count, num=total, endpoint=False).astype(np.int64)
    return torch.from_numpy((count - indices) * (config.steps // count) - 1)[total - steps :]


def make_sampler(sampling: Sampling, config: DiffusionConfig) -> Sampler:
    """Create a sampler for a network's noise schedule. `sampling` has no None, see `Sampling.filled`.

    Raises:
        UserError: a wrong number of steps, or a wrong fraction of the schedule.
    """
    import diffusers

    row, denoise = _ROWS[sampling.sampler], sampling.denoise
    steps = sampling.steps if sampling.sigmas is None else len(sampling.sigmas) - 1
    settings = {
        "num_train_timesteps": config.steps,
        "beta_start": config.beta_start,
        "beta_end": config.beta_end,
        "beta_schedule": config.beta_schedule,
        "prediction_type": config.prediction,
    }
    make = partial(getattr(diffusers, row.scheduler), **settings, **row.settings)
    sigmas = {} if sampling.sigmas is None else {"sigmas": sampling.sigmas}
    scheduler, timesteps = row.arrange(make, config, _total(config, steps, denoise), **sigmas)
    begin = row.begin(timesteps, config, denoise, steps)
    if hasattr(scheduler, "set_begin_index"):
        # Otherwise diffusers finds the first step by its timestep, which several steps can share.
        scheduler.set_begin_index(begin)
    eta = {"eta": sampling.eta} if sampling.eta else {}
    keys = scheduler.timesteps[begin:]
    return Sampler(scheduler, timesteps.float()[begin:], keys, eta, bool(eta) or row.noisy)


def starting_at(sampling: Sampling, fraction: float, config: DiffusionConfig) -> Sampling:
    """Return a sampling whose `denoise` starts it at a fraction of the timesteps, as nearly as its steps allow.

    With even steps, `denoise` is this fraction. Karras' noise levels are even in sigma^(1/7): if a schedule ends in
    pure noise, few of them belong to the lower timesteps, so that even a small `denoise` starts in almost pure noise.
    """
    if sampling.sampler not in _WITH_SIGMAS:
        return replace(sampling, denoise=fraction)
    alphas = config.alphas_cumprod[[0, max(1, round(fraction * config.steps) - 1), -1]]
    low, level, high = ((1 - alphas) / alphas) ** (1 / 14)
    ramp = float((level - low) / (high - low))  # the start's distance from the last level, as a fraction
    total = round((sampling.steps - 1 + ramp) / ramp)
    return replace(sampling, denoise=sampling.steps / (total + 0.5))  # int(steps / denoise) is `total`


def _total(config: DiffusionConfig, steps: int, denoise: float) -> int:
    """int(steps / denoise), the number of steps of which the last `steps` run. Raise `UserError` if out of range."""
    if not 1 <= steps <= config.steps:
        raise UserError(f"steps must be from 1 to {config.steps}, got {steps}.")
    if not 0.0 < denoise <= 1.0:
        raise UserError(f"denoise must be above 0 and at most 1, got {denoise}.")
    total = int(steps / denoise)
    if total > config.steps:
        raise UserError(
            f"{steps} steps at denoise {denoise} are the last of {total} steps, but at most {config.steps} are "
            "possible. Use fewer steps or a larger denoise."
        )
    return total
