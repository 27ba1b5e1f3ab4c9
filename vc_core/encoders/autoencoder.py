"""Autoencoders: encode 8 x 8 pixels of a frame as one latent vector of 4 values, and decode it.

There are two kinds, both from diffusers: Stable Diffusion's (AutoencoderKL), and the tiny one of the bundled checkpoint
(AutoencoderTiny, for TAESD's weights), whose latents have about unit variance. Latents here are raw: the caller applies
the factor `AutoencoderConfig.scale` between them and the network's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from numbers import Integral
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import UserError, check_type
from ..progress import Progress

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderTiny

    Autoencoder = AutoencoderTiny | AutoencoderKL

FACTOR, CHANNELS = 8, 4
"""Side in pixels of the area of a latent position, and channels of a latent."""
WIDTHS = (128, 256, 512, 512)
"""Channels of the levels of Stable Diffusion's autoencoder (83.7 M parameters, 248 tensors)."""
MIN_TILE = 64
"""Pixels; smaller tiles are mostly overlap."""
CHUNK = 16, 2**18
"""Frames, and pixels in all of them together, that are encoded or decoded at a time by default. In fp32, Stable
Diffusion's autoencoder needs 0.8 GB for this."""


def new_autoencoder(
    layout: str = "taesd", widths: tuple[int, ...] = WIDTHS, device: str | torch.device = "cpu"
) -> Autoencoder:
    """Create an autoencoder with random weights: an AutoencoderTiny (2.4 M parameters) for the layout `taesd`, else an
    AutoencoderKL with `widths` channels in its four levels, multiples of 32. On `meta` it needs no memory."""
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
"""Channels of the result, and the side of a latent position's area in the argument and in the result."""


@dataclass(frozen=True)
class Tiling:
    """How much is encoded or decoded at a time, to limit memory.

    Attributes:
        chunk: frames at a time, at least 1. Memory grows with it; the result does not depend on it. None: 16, or fewer
            if these have more than 2**18 pixels together.
        tile: split frames into overlapping tiles with sides of this many pixels, at least `MIN_TILE`, rounded down to a
            multiple of 8. Norms and attention work on one tile at a time, so the result differs slightly. None: entire
            frames.

    Raises:
        UserError: the chunk or tile is too small.
    """

    chunk: int | None = None
    tile: int | None = None

    def frames_of(self, size: tuple[int, int]) -> int:
        """The chunk for frames of (height, width) pixels."""
        frames, pixels = CHUNK
        return self.chunk or max(1, min(frames, pixels // self.pixels_of(size)))

    def pixels_of(self, size: tuple[int, int]) -> int:
        """Pixels of a frame of (height, width) that are encoded or decoded at a time: the frame's, or a tile's."""
        return math.prod(min(side, self.tile or side) for side in size)

    def __post_init__(self) -> None:
        check_type("chunk", self.chunk, Integral | None, "an integer")
        check_type("tile", self.tile, Integral | None, "an integer")
        if self.chunk is not None and self.chunk < 1:
            raise UserError(f"chunk must be at least 1 frame, got {self.chunk}.")
        if self.tile is not None and self.tile < MIN_TILE:
            raise UserError(f"tile must be at least {MIN_TILE} pixels, or None for entire frames. Got {self.tile}.")


@torch.no_grad()
def encode(ae: Autoencoder, video: Tensor, tiling: Tiling | None = None, progress: Progress | None = None) -> Tensor:
    """Encode a video (B, 3, F, H, W), RGB in [0, 1], as a raw latent (B, 4, F, H/8, W/8).

    Computes in the autoencoder's dtype on its device. The result is float32 on the video's device. For Stable
    Diffusion's autoencoder it is the mode of the posterior, so nothing is random.

    Args:
        progress: called as `progress("encoding", done, total)` in frames, after every chunk.

    Raises `UserError` for a wrong shape, or sides that are not multiples of 8.
    """
    if video.dim() != 5 or video.shape[1] != 3 or video.shape[-1] % FACTOR or video.shape[-2] % FACTOR:
        raise UserError(
            f"The video has the shape {tuple(video.shape)}. Expected (B, 3, F, H, W) with H and W multiples of "
            f"{FACTOR}. Resize or crop it first."
        )
    return _by_frames("encoding", partial(_encode_frames, ae), video, tiling, progress)


@torch.no_grad()
def decode(ae: Autoencoder, latent: Tensor, tiling: Tiling | None = None, progress: Progress | None = None) -> Tensor:
    """Decode a raw latent (B, 4, F, h, w) to a video (B, 3, F, 8h, 8w), RGB in [0, 1]: the reverse of `encode`.

    Progress is called with "decoding". Raises `UserError` for a wrong shape.
    """
    if latent.dim() != 5 or latent.shape[1] != CHANNELS:
        raise UserError(
            f"The latent has the shape {tuple(latent.shape)}. Expected (B, {CHANNELS}, F, h, w), as `encode` returns."
        )
    return _by_frames("decoding", partial(_decode_frames, ae), latent, tiling, progress)


def decode_frames(ae: AutoencoderTiny, latents: Tensor) -> Tensor:
    """Decode latents (N, 4, h, w), softly clamped at 3, to RGB (N, 3, 8h, 8w) of about [0, 1], not clamped, with
    gradients."""
    return ae.decoder.layers(torch.tanh(latents / 3) * 3)


def _encode_frames(ae: Autoencoder, frames: Tensor) -> Tensor:
    weight = next(ae.encoder.parameters())
    frames = frames.to(weight.device, torch.float32)
    if _is_tiny(ae):
        # Call TAESD's own network, which expects [0, 1]. The wrapper's forward expects [-1, 1], where half precision
        # loses its higher precision for dark pixels.
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
    """Apply a function of frames (N, C, H, W), see `_SIZES`, to a video (B, C, F, H, W). Return (B, c, F, h, w)."""
    tiling, (channels, scale) = tiling or Tiling(), _SIZES[what]
    if tiling.tile is not None:
        function = partial(_tiled, function, tiling.tile // FACTOR, scale=scale)
    batch, frames = video.shape[0], video.shape[2]
    size = (side // scale[0] * scale[1] for side in video.shape[3:])
    result = torch.empty((batch, channels, frames, *size), device=video.device)
    source, target = video.transpose(1, 2), result.transpose(1, 2)
    indices = torch.cartesian_prod(torch.arange(batch), torch.arange(frames))
    done = 0
    pixels = tuple(side * FACTOR // scale[0] for side in video.shape[3:])
    for piece in indices.split(tiling.frames_of(pixels)):
        b, f = piece.unbind(1)
        target[b, f] = function(source[b, f]).to(result)
        done += len(piece)
        if progress is not None:
            progress(what, done, len(indices))
    return result


def _tiled(function: Function, tile: int, frames: Tensor, scale: tuple[int, int]) -> Tensor:
    """Apply a function of frames to overlapping tiles with sides of `tile` latent positions, and blend the results.

    We do not use diffusers' tiling: it sets state on the module, has thin tiles with wrong norms at the right and lower
    border, and divides by zero for AutoencoderTiny's smaller tiles.
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
    """The first positions of tiles that cover a length: evenly spaced, with an overlap of at least a quarter."""
    if length <= tile:
        return [0]
    count = math.ceil((length - tile) / (tile - tile // 4)) + 1
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def _area(corner: tuple[int, int], tile: int, factor: int) -> tuple:
    return (..., *(slice(start * factor, (start + tile) * factor) for start in corner))


def _ramp(length: int, rise: int, device: torch.device) -> Tensor:
    """Weights (length,) of a tile: they rise at its beginning, fall at its end, and are never 0."""
    up = (torch.arange(length, device=device) + 0.5) / rise
    return torch.minimum(up, up.flip(0)).clamp_max(1.0)
