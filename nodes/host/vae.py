"""Autoencoders for videos: ComfyUI's own image VAEs, frame by frame."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.sd
import torch
from torch import Tensor

from ...vc_core.checkpoint.reading import Part
from ...vc_core.errors import UserError


class FramewiseVAE(comfy.sd.VAE):
    """An image VAE for 5-D latents: it treats a batch of images as one video, and each frame as an image.

    Only the shapes differ from the image VAE. Weights, memory estimates and tiling are shared with it.
    """

    def decode(self, samples_in: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Decode a latent `(B, 4, F, h, w)` to images `(B, F, H, W, 3)`, or a 4-D latent like the image VAE."""
        return _by_frame(super().decode, samples_in, *args, **kwargs)

    def decode_tiled(self, samples: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Decode in tiles of each frame. Frames are independent, so tiles in time have no effect."""
        return _by_frame(super().decode_tiled, samples, *args, **kwargs)

    def encode(self, pixel_samples: Tensor) -> Tensor:
        """Encode images `(F, H, W, 3)` to the latent `(1, 4, F, h, w)` of one video."""
        return super().encode(pixel_samples).movedim(0, 1)[None]

    def encode_tiled(self, pixel_samples: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Encode in tiles of each frame."""
        return super().encode_tiled(pixel_samples, *args, **kwargs).movedim(0, 1)[None]


def _by_frame(decode: Callable[..., Tensor], latent: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if latent.ndim == 4:
        return decode(latent, *args, **kwargs)
    images = decode(latent.movedim(2, 1).flatten(0, 1), *args, **kwargs)
    return images.unflatten(0, (len(latent), latent.shape[2]))


def framewise(vae: Any) -> FramewiseVAE:
    """Return a `FramewiseVAE` of an image VAE, which is not changed.

    Raises:
        UserError: its latents are not like Stable Diffusion's: 4 channels, an eighth of height and width.
    """
    if isinstance(vae, FramewiseVAE):
        return vae
    shape = (getattr(vae, "latent_dim", None), getattr(vae, "latent_channels", None), vae.downscale_ratio)
    if shape != (2, 4, 8):
        raise UserError(
            "Expected a VAE of Stable Diffusion 1.x or 2.x at the socket 'vae': 4 latent channels, an eighth of the "
            "image size. Load one with 'Load VAE'."
        )
    video = object.__new__(FramewiseVAE)
    video.__dict__.update(vae.__dict__)
    return video


def load_vae(part: Part) -> FramewiseVAE:
    """Load the autoencoder of a checkpoint, in any layout that the core supports."""
    return framewise(comfy.sd.VAE(sd=part.tensors.state()))


def latent_colors(vae: FramewiseVAE) -> list[list[float]]:
    """Return the colours `(5, 3)` in [-1, 1] that the latent channels add, and a constant as row 5, for previews.

    It is a least-squares fit to the latents of flat colours: a VAE that was trained for one checkpoint has no table.
    """
    levels = torch.linspace(0, 1, 4)
    colors = torch.cartesian_prod(levels, levels, levels)  # (64, 3)
    images = colors[:, None, None].expand(-1, 32, 32, -1)
    latents = vae.encode(images)[0, :, :, 1:3, 1:3].mean((-2, -1)).t()  # (64, 4)
    inputs = torch.cat([latents.float().cpu(), torch.ones(len(latents), 1)], dim=1)
    return torch.linalg.lstsq(inputs, colors * 2 - 1).solution.tolist()
