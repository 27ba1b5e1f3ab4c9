"""What the core composes where the nodes sample: the same conditions, made by the core, and latents to compare."""

from fractions import Fraction
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from vc_core.composer import VideoComposer
from vc_core.config import Config
from vc_core.demo import draw_clip
from vc_core.extract.camera import CameraMove, camera_field
from vc_core.extract.fields import condition_from_field
from vc_core.extract.motion import read_motion
from vc_core.extract.refit import refit
from vc_core.pipeline import compose
from vc_core.video import FramePlan


def compose_latent(composer: VideoComposer, *args: Any, **settings: Any) -> Tensor:
    """The latent `(B, 4, F, h, w)` that `compose` would decode, as ComfyUI counts latents: divided by the scale."""
    with patch("vc_core.encoders.autoencoder.decode", lambda autoencoder, latent, *rest: latent):
        return compose(composer, *args, **settings)


def clip_motion(config: Config) -> Tensor:
    """The motion of `VCExampleClip`'s images, `(1, 2, F, H, W)`."""
    plan = FramePlan(0.0, Fraction(config.rate).limit_denominator(1001), config.frames)
    kind = config.extraction
    size = (config.height, config.width)
    field = read_motion(draw_clip(), plan, size, kind.motion_layout, kind.motion_unit).field
    return refit("motion", field, size, config.frames, kind, size)


def pan_motion(config: Config, pan: tuple[float, float], frames: int) -> Tensor:
    """The motion of `VCCameraMotion` that pans, `(1, 2, F, H, W)`."""
    size = (config.height, config.width)
    return condition_from_field(camera_field(CameraMove(pan), frames, size), config.extraction, size)


def karras_sigmas(config: Config, steps: int) -> Tensor:
    """Noise levels `(steps + 1,)` of ComfyUI's scheduler "karras": arXiv 2206.00364, equation 5, rho = 7."""
    levels = _levels(config)
    low, high = levels[0] ** (1 / 7), levels[-1] ** (1 / 7)
    return torch.cat([(high + torch.linspace(0, 1, steps) * (low - high)) ** 7, torch.zeros(1)])


def normal_sigmas(config: Config, steps: int) -> Tensor:
    """Noise levels `(steps + 1,)` of ComfyUI's scheduler "normal": at even timesteps, between which their logarithms
    are linear."""
    levels, at = _levels(config).log(), torch.linspace(config.diffusion.steps - 1, 0, steps)
    below = at.floor().long()
    above = (below + 1).clamp(max=len(levels) - 1)
    return torch.cat([torch.lerp(levels[below], levels[above], at - below).exp(), torch.zeros(1)])


def _levels(config: Config) -> Tensor:
    alphas = config.diffusion.alphas_cumprod
    return ((1 - alphas) / alphas).sqrt().float()
