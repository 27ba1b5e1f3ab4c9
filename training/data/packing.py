"""Encode and decode the members of a shard. The same values give the same bytes.

For damaged bytes the decoders may raise anything, or return values of the wrong shape, which `checked` refuses.
"""

from __future__ import annotations

import io
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import torch
from torch import Tensor

from vc_core.extract.motion.vectors import VECTOR, BlockVectors
from vc_core.video import FramePlan, planned_frames, write_video
from vc_core.video.images import opened_image

COLUMNS = {**dict.fromkeys(("frame", "dst_x", "dst_y", "w", "h"), "<i2"), "dx": "<f4", "dy": "<f4"}
"""Columns of blocks: frame, centre and size, and displacement since the previous frame, in pixels of the source."""

LARGEST = 2**15 - 1  # pixels of a side of the source of block vectors
LARGEST_COLUMNS = 256 * 10**6  # unpacked bytes of the block vectors of a clip; a block has 20
IMAGE_QUALITY = 95  # of WebP, up to 100


def checked(tensor: Tensor, *shape: int) -> Tensor:
    """Return the tensor. Raises ValueError if it has another shape or contains numbers that are not finite."""
    if tuple(tensor.shape) != shape:
        raise ValueError(f"its shape is {tuple(tensor.shape)}, expected {shape}")
    if tensor.is_floating_point() and not tensor.isfinite().all():
        raise ValueError("it contains numbers that are not finite")
    return tensor


def pack_video(video: Tensor, rate: Fraction) -> bytes:
    """A clip `(1, 3, F, H, W)` in [0, 1] as H.264 in MP4."""
    with tempfile.TemporaryDirectory(prefix="prepare-") as folder:
        path = Path(folder) / "clip.mp4"
        write_video(path, video, rate)
        return path.read_bytes()


def unpack_video(data: bytes, rate: Fraction, frames: int) -> Tensor:
    """All frames of a clip, `(F, 3, H, W)` uint8."""
    plan = FramePlan(0.0, rate, frames)
    return torch.stack([_as_tensor(frame.to_ndarray()) for frame in planned_frames(data, plan, ("format", "rgb24"))])


def pack_image(image: Tensor) -> bytes:
    """An image `(1, 3, H, W)` in [0, 1] as WebP."""
    return _saved((image[0].clamp(0, 1) * 255).permute(1, 2, 0), "WEBP", quality=IMAGE_QUALITY)


def unpack_image(data: bytes) -> Tensor:
    """An image as a clip of one frame, `(1, 3, H, W)` uint8."""
    with opened_image(io.BytesIO(data), "an image of a sample", formats=["WEBP"]) as image:
        return _as_tensor(np.asarray(image.convert("RGB")))[None]


def _saved(levels: Tensor, form: str, **options: Any) -> bytes:
    """Encode an image `(H, W)` or `(H, W, 3)` of values from 0 to 255."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(levels.round().byte().numpy()).save(buffer, form, **options)
    return buffer.getvalue()


def _as_tensor(pixels: np.ndarray) -> Tensor:
    """`(H, W, 3)` to `(3, H, W)`."""
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)


def pack_vectors(vectors: BlockVectors) -> bytes:
    """The rows of block vectors, compressed: most of them differ little from their neighbours."""
    buffer = io.BytesIO()  # one array per column: equal adjacent numbers compress well
    np.savez_compressed(buffer, **{name: vectors.rows[name].astype(kind) for name, kind in COLUMNS.items()})
    return buffer.getvalue()


def unpack_vectors(data: bytes, size: tuple[int, int], first: int, frames: int) -> BlockVectors:
    """The block vectors of a window of a clip. Its first frame has none, like the first frame of every clip.

    Args:
        size: (height, width) of the source.
        first, frames: first frame and length of the window.
    """
    if not all(isinstance(side, int) and 0 < side <= LARGEST for side in size):
        raise ValueError(f"its source size is {size}")
    with ZipFile(io.BytesIO(data)) as packed:
        if (unpacked := sum(entry.file_size for entry in packed.infolist())) > LARGEST_COLUMNS:
            raise ValueError(f"it would be {unpacked / 1e6:.0f} MB when unpacked")
    with np.load(io.BytesIO(data), allow_pickle=False) as columns:
        frame = columns["frame"].astype(np.int32)
        inside = (frame > first) & (frame < first + frames)
        rows = np.empty(int(inside.sum()), VECTOR)
        for name in COLUMNS:
            rows[name] = columns[name][inside]
    if not (np.isfinite(rows["dx"]).all() and np.isfinite(rows["dy"]).all()):
        raise ValueError("it contains vectors that are not finite")
    rows["frame"] -= first
    return BlockVectors(rows, *size, frames)


def pack_maps(maps: Tensor, low: float, high: float) -> bytes:
    """Maps `(1, 1, F, H, W)` with values from `low` to `high` as a grey PNG, the frames one below the other.

    One of its 255 steps is about the smallest change of a network's estimate between frames.
    """
    levels = ((maps[0, 0] - low) / (high - low) * 255) if high > low else torch.zeros_like(maps[0, 0])
    return _saved(levels.clamp(0, 255).flatten(0, 1), "PNG")


def unpack_maps(data: bytes, low: float, high: float, frames: int) -> Tensor:
    """Maps `(1, F, H, W)` of a clip with this number of frames."""
    with opened_image(io.BytesIO(data), "an image of maps", frames, ["PNG"]) as image:
        levels = torch.from_numpy(np.array(image.convert("L")))
    if len(levels) % frames:
        raise ValueError(f"{len(levels)} rows cannot be divided into {frames} frames")
    return levels.unflatten(0, (frames, -1))[None].float() / 255 * (high - low) + low


def pack_latents(latents: Tensor) -> bytes:
    """Latents `(1, 4, F, h, w)` in half precision."""
    buffer = io.BytesIO()
    np.save(buffer, latents[0].half().numpy(), allow_pickle=False)
    return buffer.getvalue()


def unpack_latents(data: bytes) -> Tensor:
    """Latents `(4, F, h, w)`."""
    latents = np.load(io.BytesIO(data), allow_pickle=False)
    if latents.dtype != np.float16:
        raise ValueError(f"its dtype is {latents.dtype}, expected float16")
    return torch.from_numpy(latents).float()
