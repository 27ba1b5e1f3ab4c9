"""How much memory a composition takes, counted before it runs, and what is said where there was not enough."""

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
from .encoders.autoencoder import Tiling
from .errors import UserError, out_of_memory
from .model.unet import UNet3D

PROGRAM = 600_000_000
"""Bytes of the program without weights, by measurement on a CPU: torch, diffusers and open_clip. Counted for a GPU too,
where CUDA's own part is of that size."""
DECODING = {"kl": 770, "taesd": 200}
"""Elements alive at once for each pixel of the frames that are decoded (or encoded) at a time, by the config's
autoencoder, counted operation by operation."""
# Elements alive at once for each position of the latent, counted operation by operation on networks without memory. In
# the UNet most are in the first temporal Transformer, 19 times the width of its tokens and twice the level's; where
# they are narrower than the level, elsewhere at the full size, at most 29 times the level's width. In an STC-encoder
# they are 293 for each channel of its first convolution where that runs at 12 times the latent's size, and else as the
# square of it. Attention is taken to need no memory of the order of its matrix.
TOKENS, LEVEL, STC = 27, 3, 300


@dataclass(frozen=True)
class Need:
    """Bytes that a composition takes on its device at most.

    Attributes:
        weights: of what stays there: the network, the autoencoder, and the towers where they are kept.
        towers: of the largest of those that come and go, as far as it comes on top of the others' weights.
        activations: of one prediction of the network.
        decoding: of the frames that are decoded at a time, and the video.
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
) -> Need:
    """What a composition needs.

    Args:
        weights, towers: see `Need`.
        compute: type that is computed in.
        size: (height, width) of the video.
        frames: that the network sees at a time, a window of a long video.
        length: frames of all of that video; None: no more than these.
        predictions: sides of guidance, which are predicted together, 1 to 3.
        batch: number of videos.
        tiling: of decoding.
    """
    tiling, whole, length = tiling or Tiling(), math.prod(size), batch * (length or frames)
    elements = activation_elements(
        config.unet, batch * predictions, frames, size[0] // 8, size[1] // 8, config.extraction.condition_scale
    )
    # Beside what a tile takes, of each of these frames the RGB that tiles are added up in, and that divided by weights.
    a_frame = DECODING[config.autoencoder.layout] * tiling.pixels_of(size) + 2 * 3 * whole
    decoding = min(tiling.frames_of(size), length) * a_frame * compute.itemsize
    video = length * 3 * whole * torch.float32.itemsize
    return Need(weights, towers, elements * compute.itemsize, decoding + video)


def activation_elements(
    config: UNetConfig, batch: int, frames: int, height: int, width: int, condition_scale: int | None = None
) -> int:
    """Elements that a prediction of latents `(batch, 4, frames, height, width)` holds at most, weights left out.

    The conditions, one video's, are embedded one after the other and before the UNet runs; `condition_scale` is the
    checkpoint's `ExtractionConfig.condition_scale`.
    """
    stc = STC * (condition_scale or 12) ** 2 // 144
    positions = frames * height * width
    tokens = max(config.temporal_in_heads * config.head_dim, config.width)
    unet = TOKENS * tokens + LEVEL * config.width
    return max(unet * batch, stc * 4 * config.stc_channels) * positions


def as_text(need: Need, stored: torch.dtype, offload: bool, free: int, advice: Sequence[str]) -> str:
    """A sentence on what a run needs.

    Args:
        stored, offload: how the network's weights are kept.
        free: bytes that there are.
        advice: what to lower where they are too few.
    """
    kept = next(name for name, dtype in DTYPES.items() if dtype == stored) + ", offloaded" * offload
    parts = {"towers": need.towers, "activations": need.activations, "decoding": need.decoding}
    text = (
        f"needs about {need.total / 1e9:.1f} GB of memory: {need.weights / 1e9:.1f} for weights ({kept}), "
        f"{PROGRAM / 1e9:.1f} for the program and, one after the other, "
        f"{', '.join(f'{size / 1e9:.1f} for {name}' for name, size in parts.items() if size)}; "
        f"{free / 1e9:.1f} GB are free"
    )
    return f"{text}." if need.total <= free else f"{text}, too few: try {', or '.join(advice)}."


def network_bytes(unet: UNet3D, compute: torch.dtype, by_blocks: bool = False) -> int:
    """The most of a network's weights that is on its device at a time: all of them or, `by_blocks`, the largest block;
    with the copy of the largest one in the type of the computation where it is stored in another."""
    parts = unet.blocks() if by_blocks else [unet]
    copies = [p.numel() * compute.itemsize for p in unet.parameters() if p.dtype != compute]
    return max(map(weight_bytes, parts)) + max(copies, default=0)


def weight_bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def available(device: torch.device) -> int:
    """Bytes that this process can still take on a device, those among them that it has already."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    import psutil

    own = psutil.Process().memory_info()
    # Pages of mapped files are free to the system while it can read them again.
    return min([psutil.virtual_memory().available + own.rss - getattr(own, "shared", 0), *_limits()])


_CONTAINER = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where Linux says how much a container may take: cgroups of version 2, and of version 1."""


def _limits() -> Iterator[int]:
    for place in map(Path, _CONTAINER):
        with suppress(OSError, ValueError):  # it is not there, or says "max"
            yield int(place.read_text())


def smaller_weights(device: torch.device, stored: torch.dtype, offload: bool) -> list[str]:
    """What takes less memory for weights that are stored in this type, on the device or offloaded."""
    smaller = {torch.float32: "fp16", torch.float16: "fp8", torch.bfloat16: "fp8"}.get(stored)
    elsewhere = [] if device.type == "cpu" else ["the device cpu"] if offload else ["offload"]
    return [*([f"dtype {smaller}"] if smaller else []), *elsewhere]


@contextmanager
def told_of_memory(device: torch.device, advice: Sequence[str]) -> Iterator[None]:
    """Makes a sentence of running out of memory, of what takes less. Raises `UserError`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        where = "of the computer" if device.type == "cpu" else f"of the device '{device}'"
        less = ", or ".join(advice) or "ending other programs"
        raise UserError(f"The memory {where} is not enough: try {less}.") from error
