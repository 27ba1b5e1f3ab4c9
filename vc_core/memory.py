"""The memory that a composition needs, counted before it runs, and the error if it was not enough."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from .checkpoint.tensors import DTYPES
from .config import Config, UNetConfig
from .diffusion.tiles import Tiles
from .encoders.autoencoder import Tiling
from .errors import UserError, out_of_memory
from .model.unet import UNet3D

PROGRAM = 600_000_000
"""Bytes of the program without weights (torch, diffusers and open_clip), measured on a CPU. Also used for a GPU, where
CUDA itself needs about as much."""
DECODING = {"kl": 770, "taesd": 200}
"""Elements in memory at once for each pixel of the frames that are decoded (or encoded) at a time, for each autoencoder
of the config, counted operation by operation."""
# Elements in memory at once for each position of the latent, counted operation by operation on the meta device. The
# UNet's peak is in the first temporal Transformer: 19 times the width of its tokens plus twice the level's. If the
# tokens are narrower than the level, the peak is elsewhere at the full size: at most 29 times the level's width. An
# STC-encoder needs 293 for each channel of its first convolution if that runs at 12 times the latent size; other scales
# change this by their square. This assumes attention that does not store its matrix.
TOKENS, LEVEL, STC = 27, 3, 300


@dataclass(frozen=True)
class Need:
    """Peak memory of a composition on its device, in bytes.

    Attributes:
        weights: the weights that stay in memory: the network, the autoencoder, and the towers if they stay.
        towers: the largest tower that does not stay, as far as it adds to the weights.
        activations: one prediction of the network.
        decoding: the frames that are decoded at a time, and the video.
    """

    weights: int
    towers: int
    activations: int
    decoding: int

    @property
    def total(self) -> int:
        return PROGRAM + self.weights + max(self.towers, self.activations, self.decoding)


def needed(
    config: Config,
    weights: int,
    towers: int,
    compute: torch.dtype,
    *,
    size: tuple[int, int],
    frames: int,
    length: int | None = None,
    predictions: int = 2,
    batch: int = 1,
    tiling: Tiling | None = None,
    tiles: Tiles | None = None,
) -> Need:
    """Count the memory that a composition needs.

    Args:
        weights, towers: see `Need`.
        compute: dtype of the computation.
        size: (height, width) of the video.
        frames: frames that the network sees at a time: the video's, or those of a window.
        length: frames of the entire video; None: `frames`.
        predictions: sides of guidance that are predicted together, 1 to 3.
        batch: number of videos.
        tiling: the tiling of decoding.
        tiles: the tiles that the network sees at a time.
    """
    tiling, pixels, length = tiling or Tiling(), math.prod(size), batch * (length or frames)
    scale = config.extraction.condition_scale
    elements = activation_elements(config.unet, batch * predictions, frames, size[0] // 8, size[1] // 8, scale, tiles)
    # In addition to the tile, each frame needs RGB for the sum of the tiles, and for this sum divided by the weights.
    frame_elements = DECODING[config.autoencoder.layout] * tiling.pixels_of(size) + 2 * 3 * pixels
    decoding = min(tiling.frames_of(size), length) * frame_elements * compute.itemsize
    video = length * 3 * pixels * torch.float32.itemsize
    return Need(weights, towers, elements * compute.itemsize, decoding + video)


def activation_elements(
    config: UNetConfig,
    batch: int,
    frames: int,
    height: int,
    width: int,
    condition_scale: int | None = None,
    tiles: Tiles | None = None,
) -> int:
    """The peak number of elements, without weights, for a prediction of latents `(batch, 4, frames, height, width)`.

    The conditions of one video are embedded one after another, before the UNet runs, for the entire frames. The UNet
    sees one of the `tiles` at a time. `condition_scale`: see `ExtractionConfig`.
    """
    stc = STC * (condition_scale or 12) ** 2 // 144
    seen = frames * math.prod(tiles.within(height, width) if tiles else (height, width))
    tokens = max(config.temporal_in_heads * config.head_dim, config.width)
    unet = TOKENS * tokens + LEVEL * config.width
    return max(unet * batch * seen, stc * 4 * config.stc_channels * frames * height * width)


def as_text(need: Need, stored: torch.dtype, offload: bool, free: int, advice: Sequence[str]) -> str:
    """Describe the memory that a run needs, for users.

    Args:
        stored, offload: dtype of the network's weights, and whether they are offloaded.
        free: available bytes.
        advice: settings to lower if `free` is too little.
    """
    weights = next(name for name, dtype in DTYPES.items() if dtype == stored) + ", offloaded" * offload
    parts = {"towers": need.towers, "activations": need.activations, "decoding": need.decoding}
    text = (
        f"This run needs about {need.total / 1e9:.1f} GB of memory: {need.weights / 1e9:.1f} for weights ({weights}), "
        f"{PROGRAM / 1e9:.1f} for the program, and the largest of these: "
        f"{', '.join(f'{size / 1e9:.1f} for {name}' for name, size in parts.items() if size)}. "
        f"{free / 1e9:.1f} GB are free"
    )
    return f"{text}." if need.total <= free else f"{text}, which is not enough. Try {', or '.join(advice)}."


def network_bytes(unet: UNet3D, compute: torch.dtype, by_blocks: bool = False) -> int:
    """Bytes of a network's weights that are on its device at a time: all or, `by_blocks`, those of the largest block.

    If weights are not stored in the dtype of the computation, this includes the largest weight's copy in that dtype.
    """
    parts = unet.blocks() if by_blocks else [unet]
    copies = [p.numel() * compute.itemsize for p in unet.parameters() if p.dtype != compute]
    return max(map(weight_bytes, parts)) + max(copies, default=0)


def weight_bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def available(device: torch.device) -> int:
    """Bytes that are available to this process on a device, including those that it already uses."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    import psutil

    own = psutil.Process().memory_info()
    # Pages of mapped files do not count: the system can drop them and read them again.
    return min([psutil.virtual_memory().available + own.rss - getattr(own, "shared", 0), *_limits()])


_CONTAINER = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Files in which Linux stores a container's memory limit: cgroups v2, then v1."""


def _limits() -> Iterator[int]:
    for path in map(Path, _CONTAINER):
        with suppress(OSError, ValueError):  # the file does not exist, or contains "max"
            yield int(path.read_text())


def smaller_weights(device: torch.device, stored: torch.dtype, offload: bool) -> list[str]:
    """Settings with which weights in this dtype need less memory on the device."""
    smaller = {torch.float32: "fp16", torch.float16: "fp8", torch.bfloat16: "fp8"}.get(stored)
    elsewhere = [] if device.type == "cpu" else ["the device cpu"] if offload else ["offload"]
    return [*([f"dtype {smaller}"] if smaller else []), *elsewhere]


@contextmanager
def report_out_of_memory(device: torch.device, advice: Sequence[str]) -> Iterator[None]:
    """Raise `UserError` with the advice if memory runs out inside."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        owner = "The computer" if device.type == "cpu" else f"The device '{device}'"
        steps = ", or ".join(advice) or "closing other programs"
        raise UserError(f"{owner} does not have enough memory. Try {steps}.") from error
