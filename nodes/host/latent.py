"""Latents of videos, as ComfyUI counts them."""

from __future__ import annotations

from collections.abc import Sequence

import comfy.latent_formats

from ...vc_core.config import AutoencoderConfig


class VideoLatent(comfy.latent_formats.LatentFormat):
    """`(B, 4, F, h, w)`: frames are not compressed, height and width eightfold.

    Args:
        rgb: for previews, the colour `(4 or 5, 3)` in [-1, 1] that each latent channel adds, and then what is added to
            all; None for Stable Diffusion's, which ComfyUI knows.
    """

    latent_channels = 4
    latent_dimensions = 3
    spacial_downscale_ratio = 8
    temporal_downscale_ratio = 1

    def __init__(self, config: AutoencoderConfig, rgb: Sequence[Sequence[float]] | None = None):
        self.scale_factor = config.scale
        if rgb is None:
            rgb = comfy.latent_formats.SD15().latent_rgb_factors
        self.latent_rgb_factors = [list(row) for row in rgb[:4]]
        self.latent_rgb_factors_bias = list(rgb[4]) if len(rgb) > 4 else None
        self.taesd_decoder_name = None  # ComfyUI's TAESD previews take no videos
