"""The small autoencoder: 8x8 pixels to one latent vector of 4, in the TAESD layout and convention.

Files hold the layout that ComfyUI's VAE loader reads (`taesd_encoder.0.weight`, ...); in memory it is diffusers'
AutoencoderTiny, which speaks [-1, 1] at its `forward` but keeps TAESD's weights, whose networks take and return
RGB in [0, 1]. Latents have about unit variance: the scaling factor is 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vc_core.errors import UserError

if TYPE_CHECKING:
    from diffusers import AutoencoderTiny

FACTOR = 8
"""Pixels of a side that one latent position stands for."""
_ENCODER, _DECODER = "taesd_encoder.", "taesd_decoder."
_SCALARS = ("vae_scale", "vae_shift")


def new_autoencoder() -> AutoencoderTiny:
    """An AutoencoderTiny of the default architecture (2.4 M parameters) with fresh weights."""
    from diffusers import AutoencoderTiny

    return AutoencoderTiny()


def _taesd_key(key: str) -> str:
    """diffusers' name of a parameter to TAESD's; the decoder counts from 1, because its layer 0 is the clamp."""
    part, _, index, rest = key.split(".", 3)
    if part == "encoder":
        return f"{_ENCODER}{index}.{rest}"
    return f"{_DECODER}{int(index) + 1}.{rest}"


def to_taesd_layout(model: AutoencoderTiny) -> dict[str, torch.Tensor]:
    """The weights under TAESD's names, with the scalars `vae_scale` = 1 and `vae_shift` = 0 that ComfyUI reads."""
    state = {_taesd_key(key): value.detach().contiguous() for key, value in model.state_dict().items()}
    return state | {"vae_scale": torch.tensor(1.0), "vae_shift": torch.tensor(0.0)}


def load_autoencoder(state: dict[str, torch.Tensor]) -> AutoencoderTiny:
    """Build the autoencoder from a state dict in the TAESD layout, in evaluation mode.

    Raises:
        UserError: keys are missing or unexpected, a shape differs, or the file asks for another scale or shift.
    """
    from diffusers import AutoencoderTiny

    with torch.device("meta"):
        model = AutoencoderTiny()
    names = {_taesd_key(key): key for key in model.state_dict()}
    shapes = {_taesd_key(key): value.shape for key, value in model.state_dict().items()}
    missing = sorted(names.keys() - state.keys())
    unexpected = sorted(state.keys() - names.keys() - set(_SCALARS))
    if missing or unexpected:
        raise UserError(
            f"The autoencoder does not have the TAESD layout: {len(missing)} keys are missing {missing[:3]} and "
            f"{len(unexpected)} are unexpected {unexpected[:3]}; give a TAESD file with 4 latent channels."
        )
    for name, shape in shapes.items():
        if state[name].shape != shape:
            raise UserError(
                f"The autoencoder's {name} has shape {tuple(state[name].shape)} where {tuple(shape)} was expected; "
                "give a TAESD file with 4 latent channels."
            )
    for name, expected in zip(_SCALARS, (1.0, 0.0), strict=True):
        if name in state and abs(state[name].item() - expected) > 1e-6:
            raise UserError(
                f"The autoencoder's {name} is {state[name].item():g} where {expected:g} was expected; "
                "fold it into the weights or give a TAESD file without it."
            )
    model.load_state_dict({names[name]: state[name] for name in names}, strict=True, assign=True)
    return model.eval()


def _frames(video: torch.Tensor) -> torch.Tensor:
    """(B, C, F, H, W) to (B F, C, H, W)."""
    return video.transpose(1, 2).flatten(0, 1)


def _video(frames: torch.Tensor, batch: int) -> torch.Tensor:
    """(B F, C, H, W) to (B, C, F, H, W)."""
    return frames.unflatten(0, (batch, -1)).transpose(1, 2).contiguous()


@torch.no_grad()
def encode(ae: AutoencoderTiny, video: torch.Tensor, chunk: int = 16) -> torch.Tensor:
    """RGB video (B, 3, F, H, W) in [0, 1] to latent (B, 4, F, H/8, W/8), `chunk` frames at a time.

    Height and width must be multiples of 8. The result has the video's device and dtype.

    Raises:
        UserError: the video is not (B, 3, F, H, W) with sides that are multiples of 8.
    """
    if video.dim() != 5 or video.shape[1] != 3 or video.shape[-1] % FACTOR or video.shape[-2] % FACTOR:
        raise UserError(
            f"The video has shape {tuple(video.shape)} where (B, 3, F, H, W) with sides that are multiples of "
            f"{FACTOR} was expected; resize or crop it first."
        )
    parameter = next(ae.encoder.parameters())
    pieces = [
        # `layers` is TAESD's own network; the encoder's forward would expect [-1, 1].
        ae.encoder.layers(piece.to(parameter.device, parameter.dtype)).to(video.device, video.dtype)
        for piece in _frames(video).split(chunk)
    ]
    return _video(torch.cat(pieces), len(video))


@torch.no_grad()
def decode(ae: AutoencoderTiny, latent: torch.Tensor, chunk: int = 16) -> torch.Tensor:
    """Latent (B, 4, F, h, w) to RGB video (B, 3, F, 8h, 8w) in [0, 1], `chunk` frames at a time.

    Raises:
        UserError: the latent is not (B, 4, F, h, w).
    """
    if latent.dim() != 5 or latent.shape[1] != 4:
        raise UserError(
            f"The latent has shape {tuple(latent.shape)} where (B, 4, F, h, w) was expected; encode a video."
        )
    parameter = next(ae.decoder.parameters())
    pieces = [
        decode_frames(ae, piece.to(parameter.device, parameter.dtype)).clamp(0.0, 1.0).to(latent.device, latent.dtype)
        for piece in _frames(latent).split(chunk)
    ]
    return _video(torch.cat(pieces), len(latent))


def decode_frames(ae: AutoencoderTiny, latents: torch.Tensor) -> torch.Tensor:
    """Latents (N, 4, h, w) to RGB (N, 3, 8h, 8w) of about [0, 1], not clamped, with gradients.

    TAESD softly clamps latents at 3 first.
    """
    return ae.decoder.layers(torch.tanh(latents / 3) * 3)
