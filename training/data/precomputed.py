"""Results of networks that `./vc prepare` computes once for all epochs: latents, depth and sketches.

Each cache records its network and settings, so that `ShardClips` can refuse a run that requires others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.data.packing import pack_latents, pack_maps
from training.data.sample_fields import fit
from vc_core.checkpoint.files import sha256
from vc_core.checkpoint.formats import is_known_extra
from vc_core.checkpoint.reading import Part, read_checkpoint


@dataclass(frozen=True)
class Cache:
    """One cache of a shard's samples.

    `make` turns frames `(1, 3, F, H', W')` in [0, 1], at `drawing_size`, into the member's bytes and the value for the
    sample's .json, or None.
    """

    name: str  # `latents`, `depth` or `sketch`
    about: dict[str, Any]  # the extractor and its settings, as JSON values; equal settings give equal results
    make: Callable[[Tensor], tuple[bytes, Any]]
    ending: str  # file extension of the member

    def settings(self) -> dict[str, Any]:
        """The settings that the shard stores."""
        text = json.dumps(self.about, sort_keys=True).encode()
        return {**self.about, "fingerprint": self.about.get("fingerprint") or hashlib.sha256(text).hexdigest()[:16]}


def fingerprint(part: Part, scale: float = 1.0) -> str:
    """Identify the weights of an autoencoder or a tower by their values in half precision.

    So the export of `./vc export` in half precision has the fingerprint of its source file, and an autoencoder has the
    same fingerprint in all layouts (`ldm` and `diffusers`). In bfloat16, which is coarser, it has another.

    Args:
        scale: the factor of the autoencoder's latents.
    """
    values, get = [], part.tensors.get()
    for name in part.tensors.shapes:
        if not is_known_extra(part.name, name):
            tensor = get(name)
            numbers = tensor.half() if tensor.is_floating_point() else tensor
            values.append(hashlib.sha256(numbers.flatten().contiguous().view(torch.uint8).numpy()).hexdigest())
    # Sorted by value, because the names differ between layouts.
    return hashlib.sha256("".join([str(float(scale)), *sorted(values)]).encode()).hexdigest()[:16]


def latents_cache(checkpoint: Path, size: tuple[int, int], device: str = "cpu") -> Cache:
    """Latents of the video at `size`, from the autoencoder of a checkpoint.

    Raises:
        UserError: the file cannot be read or contains no autoencoder.
    """
    from vc_core.checkpoint.loading import load_autoencoder
    from vc_core.encoders.autoencoder import encode

    contents = read_checkpoint(checkpoint)
    vae = contents.part("vae")
    if contents.config:
        scale = contents.config.autoencoder.scale
    else:  # the file is only an autoencoder: Stable Diffusion's factor, or 1 for TAESD
        scale = 1.0 if vae.layout == "taesd" else 0.18215
    about = {"file": Path(checkpoint).name, "scale": scale, "fingerprint": fingerprint(vae, scale)}
    autoencoder = load_autoencoder(vae, device=device)

    def make(frames: Tensor) -> tuple[bytes, None]:
        return pack_latents(encode(autoencoder, fit(frames, size)) * scale), None

    return Cache("latents", about, make, "latents.npy")


def depth_cache(model: Path, device: str = "cpu") -> Cache:
    """Depth from a network, see `vc_core.extract.depth.networks`. Raises `UserError`."""
    from vc_core.extract.depth.networks import depth, load_depth_model

    network = load_depth_model(model, device)
    file = Path(model).expanduser()
    about = {"method": network.which, "file": file.name, "sha256": sha256(file) if file.is_file() else None}

    def make(frames: Tensor) -> tuple[bytes, list[float]]:
        maps = depth(frames, network)
        span = [maps.min().item(), maps.max().item()]
        return pack_maps(maps, *span), span

    return Cache("depth", about, make, "depth.png")


def sketch_cache(method: str, device: str = "cpu") -> Cache:
    """Sketches from a method of `vc_core.extract.sketch.methods`. Its networks are loaded once.

    Raises:
        UserError: a file of the networks is missing.
    """
    from vc_core.extract.annotators import per_frame
    from vc_core.extract.sketch.methods import load_sketcher

    sketcher = load_sketcher(method, device)
    about: dict[str, Any] = {"method": sketcher.which}
    if sketcher.files:
        about["sha256"] = [sha256(file) for file in sketcher.files]

    def make(frames: Tensor) -> tuple[bytes, list[float]]:
        return pack_maps(per_frame(sketcher.draw, frames, "sketch"), 0.0, 1.0), [0.0, 1.0]

    return Cache("sketch", about, make, "sketch.png")
