"""Autoencoders: 8 x 8 pixels of a frame to one latent vector of 4 and back.

Two kinds, both diffusers': Stable Diffusion's (AutoencoderKL), and the tiny one of the bundled checkpoint
(AutoencoderTiny), which keeps TAESD's weights and whose latents have about unit variance. Latents here are raw: the
factor of `AutoencoderConfig.scale` between them and the network's is the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import UserError
from ..progress import Progress

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderTiny

    Autoencoder = AutoencoderTiny | AutoencoderKL

FACTOR, CHANNELS = 8, 4
"""Pixels of a side that one latent position stands for, and channels of a latent."""
WIDTHS = (128, 256, 512, 512)
"""Channels of the levels of Stable Diffusion's autoencoder (83.7 M parameters, 248 tensors)."""
MIN_TILE = 64
"""Pixels; smaller tiles are mostly overlap."""


def new_autoencoder(
    layout: str = "taesd", widths: tuple[int, ...] = WIDTHS, device: str | torch.device = "cpu"
) -> Autoencoder:
    """An autoencoder with fresh weights: an AutoencoderTiny (2.4 M parameters) for the layout `taesd`, else an
    AutoencoderKL with `widths` channels in its four levels, multiples of 32. On `meta` it takes no memory."""
    from diffusers import AutoencoderKL, AutoencoderTiny

    with torch.device(device):
        if layout == "taesd":
            return AutoencoderTiny()
        return AutoencoderKL(
            block_out_channels=widths,
            down_block_types=("DownEncoderBlock2D",) * len(widths),
            up_block_types=("UpDecoderBlock2D",) * len(widths),
            layers_per_block=2,
            latent_channels=CHANNELS,
        )


# --- Encoding and decoding ------------------------------------------------------------------------------------------


Function = Callable[[Tensor], Tensor]
_SIZES = {"encoding": (CHANNELS, (FACTOR, 1)), "decoding": (3, (1, FACTOR))}
"""Channels of the result, and pixels of a side that a latent position has in the argument and in the result."""


@dataclass(frozen=True)
class Tiling:
    """How much is encoded or decoded at a time, to bound the memory that it takes.

    Attributes:
        chunk: frames at a time, at least 1. Memory grows with it; the result does not depend on it.
        tile: side in pixels, at least `MIN_TILE`, rounded down to a multiple of 8, of overlapping tiles that frames are
            cut into; norms and attention see one tile at a time, so the result differs a little. None: whole frames.

    Raises:
        UserError: a chunk or tile that is too small.
    """

    chunk: int = 16
    tile: int | None = None

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise UserError(f"The chunk is {self.chunk} frames: expected at least 1.")
        if self.tile is not None and self.tile < MIN_TILE:
            raise UserError(f"The tile is {self.tile} pixels: expected at least {MIN_TILE}, or none for whole frames.")


@torch.no_grad()
def encode(ae: Autoencoder, video: Tensor, tiling: Tiling | None = None, progress: Progress | None = None) -> Tensor:
    """Video (B, 3, F, H, W), RGB in [0, 1], to its raw latent (B, 4, F, H/8, W/8).

    The computation runs in the autoencoder's type on its device; the result is float32 on the video's device. Of
    Stable Diffusion's autoencoder it is the mode of the posterior, so nothing is random.

    Args:
        progress: called as `progress("encoding", done, total)` in frames, after every chunk.

    Raises `UserError` for a video of another shape or whose sides are no multiples of 8.
    """
    if video.dim() != 5 or video.shape[1] != 3 or video.shape[-1] % FACTOR or video.shape[-2] % FACTOR:
        raise UserError(
            f"The video has shape {tuple(video.shape)} where (B, 3, F, H, W) with sides that are multiples of "
            f"{FACTOR} was expected: resize or crop it first."
        )
    return _by_frames("encoding", partial(_encode_frames, ae), video, tiling, progress)


@torch.no_grad()
def decode(ae: Autoencoder, latent: Tensor, tiling: Tiling | None = None, progress: Progress | None = None) -> Tensor:
    """Raw latent (B, 4, F, h, w) to video (B, 3, F, 8h, 8w), RGB in [0, 1]: the reverse of `encode`, see there.

    Progress is called with "decoding". Raises `UserError` for a latent of another shape.
    """
    if latent.dim() != 5 or latent.shape[1] != CHANNELS:
        raise UserError(
            f"The latent has shape {tuple(latent.shape)} where (B, {CHANNELS}, F, h, w) was expected: encode a video."
        )
    return _by_frames("decoding", partial(_decode_frames, ae), latent, tiling, progress)


def decode_frames(ae: AutoencoderTiny, latents: Tensor) -> Tensor:
    """Latents (N, 4, h, w), softly clamped at 3, to RGB (N, 3, 8h, 8w) of about [0, 1], not clamped, with gradients."""
    return ae.decoder.layers(torch.tanh(latents / 3) * 3)


def _encode_frames(ae: Autoencoder, frames: Tensor) -> Tensor:
    weight = next(ae.encoder.parameters())
    frames = frames.to(weight.device, torch.float32)
    if _is_tiny(ae):
        # TAESD's own network, which takes [0, 1]. The forward around it takes [-1, 1], where half precision tells dark
        # pixels apart no better than bright ones.
        return ae.encoder.layers(frames.to(weight.dtype))
    return ae.encode((frames * 2 - 1).to(weight.dtype)).latent_dist.mode()


def _decode_frames(ae: Autoencoder, latents: Tensor) -> Tensor:
    weight = next(ae.decoder.parameters())
    latents = latents.to(weight.device, weight.dtype)
    frames = decode_frames(ae, latents) if _is_tiny(ae) else ae.decode(latents).sample.float() / 2 + 0.5
    return frames.clamp(0.0, 1.0)


def _is_tiny(ae: Autoencoder) -> bool:
    from diffusers import AutoencoderTiny

    return isinstance(ae, AutoencoderTiny)


def _by_frames(
    what: str, function: Function, video: Tensor, tiling: Tiling | None, progress: Progress | None
) -> Tensor:
    """A function of frames (N, C, H, W), of one of `_SIZES`, applied to a video (B, C, F, H, W): (B, c, F, h, w)."""
    tiling, (channels, scale) = tiling or Tiling(), _SIZES[what]
    if tiling.tile is not None:
        function = partial(_tiled, function, tiling.tile // FACTOR, scale=scale)
    batch, frames = video.shape[0], video.shape[2]
    size = (side // scale[0] * scale[1] for side in video.shape[3:])
    result = torch.empty((batch, channels, frames, *size), device=video.device)
    source, target = video.transpose(1, 2), result.transpose(1, 2)
    places = torch.cartesian_prod(torch.arange(batch), torch.arange(frames))
    done = 0
    for piece in places.split(tiling.chunk):
        b, f = piece.unbind(1)
        target[b, f] = function(source[b, f]).to(result)
        done += len(piece)
        if progress is not None:
            progress(what, done, len(places))
    return result


def _tiled(function: Function, tile: int, frames: Tensor, scale: tuple[int, int]) -> Tensor:
    """A function of frames applied to overlapping tiles, of `tile` latent positions a side, which are blended.

    diffusers' own tiling sets state on the module, leaves slivers at the right and lower border whose norms go
    astray, and divides by zero for AutoencoderTiny's smaller tiles.
    """
    inner, outer = scale
    height, width = (side // inner for side in frames.shape[-2:])
    corners = list(product(_starts(height, tile), _starts(width, tile)))
    if len(corners) == 1:
        return function(frames)
    result: Tensor | None = None
    for corner in corners:
        piece = function(frames[_area(corner, tile, inner)]).float()
        if result is None:
            result = piece.new_zeros(*piece.shape[:2], height * outer, width * outer)
            weights = result.new_zeros(result.shape[-2:])
        weight = torch.outer(*(_ramp(side, tile // 4 * outer, piece.device) for side in piece.shape[-2:]))
        area = _area(corner, tile, outer)
        result[area] += piece * weight
        weights[area] += weight
    return result / weights


def _starts(length: int, tile: int) -> list[int]:
    """Where tiles begin that cover a length, evenly spaced, overlapping by a quarter or more, the last at the end."""
    if length <= tile:
        return [0]
    count = math.ceil((length - tile) / (tile - tile // 4)) + 1
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def _area(corner: tuple[int, int], tile: int, factor: int) -> tuple:
    return (..., *(slice(start * factor, (start + tile) * factor) for start in corner))


def _ramp(length: int, rise: int, device: torch.device) -> Tensor:
    """Weights (length,) of a tile: they rise over its first positions and fall over its last, and are never 0."""
    up = (torch.arange(length, device=device) + 0.5) / rise
    return torch.minimum(up, up.flip(0)).clamp_max(1.0)
