"""Autoencoders for videos: ComfyUI's own image VAEs, taken frame by frame."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.sd
import torch
from torch import Tensor

from ...vc_core.checkpoint.reading import Part
from ...vc_core.errors import UserError


class FramewiseVAE(comfy.sd.VAE):
    """An image VAE for 5-D latents: a batch of images is one video, and every frame goes through it by itself.

    Only the shapes differ from the VAE that it was made of, whose weights, memory estimates and tiling it shares.
    """

    def decode(self, samples_in: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Latent `(B, 4, F, h, w)` to pictures `(B, F, H, W, 3)`; a 4-D latent as ever."""
        return _by_frame(super().decode, samples_in, *args, **kwargs)

    def decode_tiled(self, samples: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As `decode`, in tiles of each frame; frames are independent, so the tiles in time change nothing."""
        return _by_frame(super().decode_tiled, samples, *args, **kwargs)

    def encode(self, pixel_samples: Tensor) -> Tensor:
        """Pictures `(F, H, W, 3)` to the latent `(1, 4, F, h, w)` of one video."""
        return super().encode(pixel_samples).movedim(0, 1)[None]

    def encode_tiled(self, pixel_samples: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As `encode`, in tiles of each frame."""
        return super().encode_tiled(pixel_samples, *args, **kwargs).movedim(0, 1)[None]


def _by_frame(decode: Callable[..., Tensor], latent: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if latent.ndim == 4:
        return decode(latent, *args, **kwargs)
    pictures = decode(latent.movedim(2, 1).flatten(0, 1), *args, **kwargs)
    return pictures.unflatten(0, (len(latent), latent.shape[2]))


def framewise(vae: Any) -> FramewiseVAE:
    """A `FramewiseVAE` of an image VAE, which stays as it is.

    Raises:
        UserError: a VAE of another kind than Stable Diffusion's: 4 channels, an eighth of height and width.
    """
    if isinstance(vae, FramewiseVAE):
        return vae
    shape = (getattr(vae, "latent_dim", None), getattr(vae, "latent_channels", None), vae.downscale_ratio)
    if shape != (2, 4, 8):
        raise UserError(
            "The socket 'vae' holds another kind of VAE: expected Stable Diffusion 1.x's or 2.x's, with latents of 4 "
            "channels and an eighth of the size."
        )
    video = object.__new__(FramewiseVAE)
    video.__dict__.update(vae.__dict__)
    return video


def load_vae(part: Part) -> FramewiseVAE:
    """The autoencoder of a checkpoint, in any layout that the core knows."""
    return framewise(comfy.sd.VAE(sd=part.tensors.state()))


def latent_colors(vae: FramewiseVAE) -> list[list[float]]:
    """What colour each latent channel stands for, `(5, 3)` in [-1, 1], the last row for none: for previews.

    A least-squares fit to the latents of flat colours, of which no table exists for a VAE that was trained for one
    checkpoint.
    """
    levels = torch.linspace(0, 1, 4)
    colors = torch.cartesian_prod(levels, levels, levels)  # (64, 3)
    pictures = colors[:, None, None].expand(-1, 32, 32, -1)
    latents = vae.encode(pictures)[0, :, :, 1:3, 1:3].mean((-2, -1)).t()  # (64, 4)
    inputs = torch.cat([latents.float().cpu(), torch.ones(len(latents), 1)], dim=1)
    return torch.linalg.lstsq(inputs, colors * 2 - 1).solution.tolist()
