"""Samplers: diffusers' schedulers, set up for the network's schedule, and the loop that drives them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import Config, DiffusionConfig
from ..errors import UserError, shown
from ..progress import Progress
from .guidance import Denoiser
from .windows import Windows

LCM_TIMESTEPS = 50
"""Timesteps that networks of few steps are distilled on."""


@dataclass(frozen=True)
class Sampling:
    """How a video is sampled.

    Attributes:
        sampler: one of `SAMPLERS`; `ddim_released` is the released loop, `lcm` is meant for networks distilled for it.
            None is the checkpoint's own.
        steps: that are run, 1 to the schedule's 1000; None: the checkpoint's own number.
        denoise: share of the noise schedule that is run, in (0, 1]: below 1 for a given video, which is changed then.
            As in ComfyUI, the steps are the last `steps` of int(steps / denoise). `ddim_released` begins at the first
            timestep of its grid that is at most denoise times the schedule's last, and runs as many as follow, which
            are more than `steps` where int(steps / denoise) does not divide the schedule.
        eta: share of fresh noise in each step of the DDIMs, in [0, 1] (arXiv 2010.02502, equation 16): 0 is
            deterministic, 1 is DDPM.
        sigmas: noise levels to run on in place of the sampler's own, one more than steps, descending, the last one 0:
            as k-diffusion and ComfyUI have them, the standard deviation of the noise beside a signal of 1. For
            `dpmpp_2m`, `unipc` and `euler`. The network is told the nearest whole timesteps, as there.
        guidance: scale of the classifier-free guidance by text and style; 1 is none; None is the checkpoint's own.
        condition_guidance: scale of a further guidance by the spatial-temporal conditions (not 1: a third network
            side at every step); 1, as released, has them on both sides. See `vc_core.diffusion.guidance.combine`.
        rescale: 0 to 1, against the overexposure of high guidance (arXiv 2305.08891, section 3.4).
        windows: how more frames than a window's length are cut; None is windows of the frames that the checkpoint was
            trained for, which overlap by half. See `Windows`.

    Raises:
        UserError: an unknown sampler, or a number of another type or out of its range.
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

    def __post_init__(self) -> None:
        for name in ("guidance", "condition_guidance", "rescale"):
            value = getattr(self, name)
            if value is None and name == "guidance":
                continue
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise UserError(f"{name} {shown(value)} is not possible: expected a finite number.")
        for name in ("rescale", "eta"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"{name} {getattr(self, name)} is not possible: expected 0 to 1.")
        if self.sampler is None:  # the rest is checked of the one that the checkpoint has
            return
        if self.sampler not in SAMPLERS:
            raise UserError(f"Unknown sampler '{self.sampler}': expected one of {', '.join(SAMPLERS)}.")
        if self.eta and self.sampler not in _TAKE_ETA:
            raise UserError(
                f"eta {self.eta} means nothing to the sampler '{self.sampler}': leave it at 0, or use one of "
                f"{', '.join(_TAKE_ETA)}."
            )
        if self.sigmas is not None and not (self.sampler in _TAKE_SIGMAS and self.denoise == 1.0):
            given = len(self.sigmas)
            raise UserError(
                f"{given} sigmas were given to '{self.sampler}' for {given - 1} steps at denoise {self.denoise}: "
                f"expected one of {', '.join(_TAKE_SIGMAS)}, {given} sigmas and denoise 1."
            )

    def filled(self, config: Config) -> "Sampling":
        """The same with what is None as the checkpoint has it. Raises `UserError` where that does not go with it."""
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
        timesteps: `(steps,)` float32, descending from at most `config.steps - 1`: what the network is told.
        keys: the same steps as the scheduler names them.
        settings: further arguments of every `scheduler.step`.
        noisy: whether the steps draw noise.
    """

    scheduler: Any
    timesteps: Tensor
    keys: Tensor
    settings: Mapping[str, Any]
    noisy: bool

    def start(self, noise: Tensor, latent: Tensor | None = None) -> Tensor:
        """The noisy latent of the first step: of noise alone, or of a clean latent of the same shape."""
        if latent is None:
            return noise * self.scheduler.init_noise_sigma
        return self.scheduler.add_noise(latent, noise, self.keys[:1])


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
    scheduler, total = sampler.scheduler, len(sampler.timesteps)
    settings = {**sampler.settings, **({"generator": list(generators)} if sampler.noisy else {})}
    for i, (t, key) in enumerate(zip(sampler.timesteps, sampler.keys, strict=True)):
        prediction = denoiser(scheduler.scale_model_input(x, key), t)
        x = scheduler.step(prediction, key, x, **settings, return_dict=False)[0]
        if progress is not None:
            progress("sampling", i + 1, total)
    return x


# --- The table ------------------------------------------------------------------------------------------------------


Arranged = tuple[Any, Tensor]
"""A scheduler whose steps are set, and what the network is told at each of them."""


def _by_sigmas(make: Callable, config: DiffusionConfig, steps: int, sigmas: Tensor | None = None) -> Arranged:
    """Solvers over Karras' noise levels (arXiv 2206.00364), from the highest of the schedule down to its lowest, and 0;
    or over given ones, `sigmas`, of which the network is told the nearest whole timesteps.

    diffusers rounds their timesteps to whole ones, and so tells the network of another noise than there is: a fifth
    more or less at the end. The network takes fractions, so it is told the truth.
    """
    alphas, scheduler = config.alphas_cumprod, make()
    scheduler.alphas_cumprod = alphas  # in float64, from which set_timesteps makes its float32 sigmas
    levels = ((1 - alphas) / alphas).sqrt()
    # Else Euler takes its range from `steps` of the levels, which lacks the highest ones.
    scheduler.register_to_config(sigma_min=levels[0].item(), sigma_max=levels[-1].item())
    scheduler.set_timesteps(steps)
    if sigmas is not None:
        scheduler.sigmas = sigmas.float().cpu()
        return scheduler, (scheduler.sigmas[:-1, None].log() - levels.log()).abs().argmin(dim=1)
    told = np.interp(scheduler.sigmas[:-1].double().log().numpy(), levels.log().numpy(), np.arange(config.steps))
    return scheduler, torch.from_numpy(told)


def _ddim(make: Callable, config: DiffusionConfig, steps: int) -> Arranged:
    """Even steps from the last timestep down to a clean latent ("trailing" in arXiv 2305.08891, table 2).

    diffusers finds the previous step as t - 1000 // steps, which leaves its own grid wherever steps does not divide
    1000. So the scheduler is given the schedule of these steps alone, where the previous one is t - 1.
    """
    grid = np.round(np.arange(1, steps + 1) * config.steps / steps).astype(np.int64) - 1
    scheduler = make(num_train_timesteps=steps)
    scheduler.alphas_cumprod = config.alphas_cumprod.float()[grid]
    scheduler.set_timesteps(steps)
    return scheduler, torch.from_numpy(grid).flip(0)


def _ddim_released(make: Callable, config: DiffusionConfig, steps: int) -> Arranged:
    """The released loop: timesteps 1 + k * (1000 // steps), descending, as many as there are (more than `steps` where
    it does not divide 1000), the last step landing on alphas_cumprod[0]."""
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
    """What a timestep is multiplied by in c_skip and c_out of `lcm`: functions of the place in a schedule of 1000."""
    return 10.0 * 1000 / config.steps


# A sampler -> diffusers' class, its settings, and what sets up its steps.
_KARRAS = {"use_karras_sigmas": True}
_TABLE = {
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", **_KARRAS}, _by_sigmas),
    "unipc": ("UniPCMultistepScheduler", _KARRAS, _by_sigmas),
    # "leading" makes unit noise of its first network input, as it is in the others.
    "euler": ("EulerDiscreteScheduler", {"timestep_spacing": "leading", **_KARRAS}, _by_sigmas),
    "lcm": ("LCMScheduler", {"clip_sample": False}, _lcm),
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": True}, _ddim),
    "ddim_released": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}, _ddim_released),
}
SAMPLERS = tuple(_TABLE)
_TAKE_ETA = tuple(name for name, (kind, *_) in _TABLE.items() if kind == "DDIMScheduler")
_TAKE_SIGMAS = tuple(name for name, (*_, arrange) in _TABLE.items() if arrange is _by_sigmas)


def released_timesteps(config: DiffusionConfig, steps: int, denoise: float = 1.0) -> Tensor:
    """The timesteps that `ddim_released` runs, descending, whole numbers; see `make_sampler`, which raises the same."""
    grid = _released_grid(config, _total(config, steps, denoise))
    return grid[_released_begin(grid, config, denoise) :]


def lcm_timesteps(config: DiffusionConfig, steps: int, denoise: float = 1.0) -> Tensor:
    """The timesteps that `lcm` runs, descending, whole numbers; see `make_sampler`, which raises the same.

    Those of the distillation (arXiv 2310.04378, section 4.3), of which `steps` are taken evenly from the last one down,
    for 4 of them 999, 759, 499, 259; of all, where there are more steps.
    """
    total = _total(config, steps, denoise)
    count = _distilled(config, total)
    taken = np.linspace(0, count, num=total, endpoint=False).astype(np.int64)
    return torch.from_numpy((count - taken) * (config.steps // count) - 1)[total - steps :]


def make_sampler(sampling: Sampling, config: DiffusionConfig) -> Sampler:
    """A sampler, see `Sampling.filled`, for the schedule that a network was trained on.

    Raises:
        UserError: a number of steps, or a share of the schedule, that the schedule does not have.
    """
    import diffusers

    (kind, own, arrange), denoise = _TABLE[sampling.sampler], sampling.denoise
    steps = sampling.steps if sampling.sigmas is None else len(sampling.sigmas) - 1
    settings = {
        "num_train_timesteps": config.steps,
        "beta_start": config.beta_start,
        "beta_end": config.beta_end,
        "beta_schedule": config.beta_schedule,
        "prediction_type": config.prediction,
    }
    make = partial(getattr(diffusers, kind), **settings, **own)
    given = {} if sampling.sigmas is None else {"sigmas": sampling.sigmas}
    scheduler, told = arrange(make, config, _total(config, steps, denoise), **given)
    begin = _released_begin(told, config, denoise) if arrange is _ddim_released else len(told) - steps
    if hasattr(scheduler, "set_begin_index"):
        # Else diffusers looks the first step up by its timestep, which several steps can share.
        scheduler.set_begin_index(begin)
    fresh = {"eta": sampling.eta} if sampling.eta else {}
    return Sampler(scheduler, told.float()[begin:], scheduler.timesteps[begin:], fresh, bool(fresh) or arrange is _lcm)


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


def _released_begin(timesteps: Tensor, config: DiffusionConfig, denoise: float) -> int:
    """The first step of at most the highest timestep, of a grid that may have more steps than were asked for."""
    highest = round(denoise * config.steps, 6)  # as 0.29 * 100 is less than 29
    return min(int((timesteps > highest).sum()), len(timesteps) - 1)
