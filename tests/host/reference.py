"""The core's results for the nodes' graphs: the same conditions, computed by the core, and latents to compare."""

from fractions import Fraction
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from tests.composing import composed
from vc_core.composer import VideoComposer
from vc_core.config import Config
from vc_core.demo import draw_clip
from vc_core.extract.motion.camera import CameraMove, camera_field, condition_from_field
from vc_core.extract.motion.from_video import read_motion
from vc_core.extract.refit import refit
from vc_core.video import FramePlan


def compose_latent(composer: VideoComposer, *args: Any, **settings: Any) -> Tensor:
    """Return the latent `(B, 4, F, h, w)` that `compose` would decode, in ComfyUI's units: divided by the scale."""
    with patch("vc_core.encoders.autoencoder.decode", lambda autoencoder, latent, *rest: latent):
        return composed(composer, *args, **settings)


def clip_motion(config: Config) -> Tensor:
    """Return the motion `(1, 2, F, H, W)` of `VCExampleClip`'s images."""
    plan = FramePlan(0.0, Fraction(config.rate).limit_denominator(1001), config.frames)
    kind = config.extraction
    size = (config.height, config.width)
    field = read_motion(draw_clip(), plan, size, kind.motion_layout).field
    return refit("motion", field, size, config.frames, kind, size)


def pan_motion(config: Config, pan: tuple[float, float], frames: int) -> Tensor:
    """Return the motion `(1, 2, F, H, W)` of a panning `VCCameraMotion`."""
    size = (config.height, config.width)
    return condition_from_field(camera_field(CameraMove(pan), frames, size), config.extraction, size)


def karras_sigmas(config: Config, steps: int) -> Tensor:
    """Return noise levels `(steps + 1,)` of ComfyUI's scheduler "karras": arXiv 2206.00364, equation 5, rho = 7."""
    levels = _levels(config)
    low, high = levels[0] ** (1 / 7), levels[-1] ** (1 / 7)
    return torch.cat([(high + torch.linspace(0, 1, steps) * (low - high)) ** 7, torch.zeros(1)])


def normal_sigmas(config: Config, steps: int) -> Tensor:
    """Return noise levels `(steps + 1,)` of ComfyUI's scheduler "normal": evenly spaced timesteps. Between timesteps,
    the logarithms are interpolated linearly."""
    levels, at = _levels(config).log(), torch.linspace(config.diffusion.steps - 1, 0, steps)
    below = at.floor().long()
    above = (below + 1).clamp(max=len(levels) - 1)
    return torch.cat([torch.lerp(levels[below], levels[above], at - below).exp(), torch.zeros(1)])


def _levels(config: Config) -> Tensor:
    alphas = config.diffusion.alphas_cumprod
    return ((1 - alphas) / alphas).sqrt().float()
