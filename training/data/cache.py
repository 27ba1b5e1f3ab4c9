"""A cache of synthetic clips: latents, tokens and conditions, computed once and read memory-mapped ever after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from training.data.captions import caption_tokens, captions
from training.data.render import render
from training.data.scenes import Scenes, sample_scenes, scene_seeds
from vc_core.atomic import written_beside
from vc_core.conditions import condition_size, drawing_size
from vc_core.disk import make_folder
from vc_core.extract.sketch import edges
from vc_core.progress import Progress
from vc_core.video import resize_crop

SHARD = 128
CAPTIONS = 4
"""Captions kept for each clip."""
STILLS = 4
"""Frames of each clip, evenly spaced, of which the style embedding is kept."""


def make_shard(
    seeds: Tensor,
    autoencoder: Any,
    towers: Any,
    size: int = 64,
    frames: int = 16,
    batch: int = 16,
    scale: int | None = None,
) -> dict[str, Tensor]:
    """Everything that training needs of the scenes of `seeds` (N,), frames first, small types, on the encoders' device.

    Args:
        scale: of the conditions, see `condition_size`.

    Returns:
        latents (N, F, 4, h, w), text (N, CAPTIONS, 77, D) and style (N, STILLS, D) in half precision; video, edges and
        outline (N, F, C, S, S) as bytes of 0..1, depth in half, object (the first object's mask) as bytes, at the
        conditions' size S; motion (N, F, 2, S', S') in half, in pixels of the video.
    """
    from vc_core.encoders.autoencoder import encode
    from vc_core.encoders.clip import encode_image

    device = next(autoencoder.parameters()).device
    drawn_size = drawing_size("depth", (size, size))[0]
    wanted = condition_size("depth", (size, size), scale)
    motion_size = condition_size("motion", (size, size), scale)[0]
    shards = []
    for chunk in seeds.split(batch):
        told = sample_scenes(chunk.cpu())
        scenes = sample_scenes(chunk.to(device))
        small = render(scenes, size, frames, what=("video",)).video
        fields = render(scenes, motion_size, frames, what=("motion",))
        large = render(scenes, drawn_size, frames, what=("video", "depth", "outline", "object_mask"))
        stills = small[:, :, :: frames // STILLS].transpose(1, 2).flatten(0, 1)
        shards.append(
            {
                # In the autoencoder's own type, and on a CPU a few frames at a time.
                "latents": encode(autoencoder, small, 16 if device.type == "cpu" else 1024).half(),
                "text": _texts(towers, told).half(),
                "style": encode_image(towers, stills).unflatten(0, (len(scenes), -1)).squeeze(2).half(),
                "video": as_bytes(resize_crop(large.video, wanted)),
                "edges": as_bytes(resize_crop(edges(large.video), wanted)),
                "outline": as_bytes(resize_crop(large.outline, wanted)),
                "object": as_bytes(resize_crop(large.object_mask, wanted).round()),
                "depth": resize_crop(large.depth, wanted).half(),
                "motion": (fields.motion * (size / motion_size)).half(),
            }
        )
    joined = {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}
    tokens = ("text", "style")
    return {k: v if k in tokens else v.transpose(1, 2).contiguous() for k, v in joined.items()}


def _texts(towers: Any, scenes: Scenes) -> Tensor:
    """Tokens (N, CAPTIONS, 77, D) of some captions of each scene."""
    from vc_core.encoders.clip import encode_tokens

    tokens = [caption_tokens(captions(scenes, variation)) for variation in range(CAPTIONS)]
    return encode_tokens(towers, torch.cat(tokens)).unflatten(0, (CAPTIONS, -1)).transpose(0, 1)


def as_bytes(values: Tensor) -> Tensor:
    """0..1 as bytes of 0..255."""
    return (values * 255).round().to(torch.uint8)


class ClipCache:
    """The clips of some shards, as `build` returns them; reading takes in only what is asked for."""

    def __init__(self, paths: Sequence[Path]):
        self.files = [safetensors.safe_open(path, framework="pt") for path in paths]
        self.counts = [file.get_slice("latents").get_shape()[0] for file in self.files]

    def __len__(self) -> int:
        return sum(self.counts)

    def read(self, name: str, index: int, frames: slice | Sequence[int] = slice(None)) -> Tensor:
        """One tensor of one clip, by default whole, as it is stored."""
        shard = 0
        while index >= self.counts[shard]:
            index -= self.counts[shard]
            shard += 1
        return self.files[shard].get_slice(name)[index, frames]


def build(
    folder: Path,
    seed: int,
    start: int,
    count: int,
    autoencoder: Any,
    towers: Any,
    size: int = 64,
    progress: Progress | None = None,
) -> list[Path]:
    """The shards of the scenes `start` to `start + count` of a seed; those that exist are left as they are.

    Args:
        size: pixels of a side.
        progress: called as `progress("scenes", done, count)`.
    """
    make_folder(folder)
    paths = []
    for first in range(start, start + count, SHARD):
        number = min(SHARD, start + count - first)
        partial = "" if number == SHARD else f"-{number}"
        path = folder / f"{seed:04d}-{first:06d}{partial}.safetensors"
        if not path.exists():
            shard = make_shard(scene_seeds(seed, first, number), autoencoder, towers, size)
            with written_beside(path) as temporary:
                safetensors.torch.save_file(shard, temporary)
        paths.append(path)
        if progress is not None:
            progress("scenes", first - start + number, count)
    return paths
