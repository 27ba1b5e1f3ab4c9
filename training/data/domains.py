"""A recipe's domains as data sets."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch

from training.data.folder import FolderClips, read_captions, usable
from training.data.other_shards import read_shards, warn_of_compressed
from training.data.precomputed import fingerprint
from training.data.sample import Clips
from training.data.sample_fields import Form
from training.data.shards import ShardClips, Shards, is_ours, shard_files
from training.data.synthetic.clips import ClipCache, DrawnScenes, SyntheticClips, build_cache
from training.data.synthetic.scenes import CLIP_FRAMES
from training.recipe import Domain
from vc_core.checkpoint.loading import load_autoencoder, load_towers
from vc_core.checkpoint.reading import PARTS, Part
from vc_core.config import Config
from vc_core.errors import UserError
from vc_core.progress import Progress

SCENES = 1
"""Seed of the training scenes; other seeds are for measuring."""

_ENCODERS = ("vae", "text", "image")


def lengths(domain: Domain) -> tuple[int, ...]:
    """Numbers of frames that the steps of a domain choose from, see `RankOrder.frames`. Raises `UserError`."""
    if any(frames < 1 for frames in domain.lengths):
        raise UserError(f"The recipe's lengths must be numbers of frames, 1 or more. Got {domain.lengths}.")
    return domain.lengths or (domain.frames,)


def open_clips(
    domain: Domain,
    size: tuple[int, int],
    config: Config,
    parts: Mapping[str, Part],
    progress: Progress | None = None,
    out: Path | None = None,
) -> dict[int, Clips]:
    """Open the data set of a domain, by number of frames, for `training.data.loading.load`.

    If a cache of synthetic scenes must be filled, or shards have no index yet, the first of several processes on one
    disk should call this before the others do. Otherwise each repeats the same work.

    Args:
        size: (height, width) of the videos.
        config: the network's, which sets how its conditions are computed.
        parts: the run's autoencoder and towers. Latents in shards must come from this autoencoder.
        progress: called as `progress("scenes", done, count)` while scenes are cached.
        out: the run's folder, which is not data even if it is inside the data folder.

    Raises:
        UserError: something that the domain names is missing or does not match the run.
    """
    if domain.kind != "synthetic" and domain.path is None:
        raise UserError(f"The recipe's data of kind {domain.kind} has no path. Set path to its folder.")
    forms = {frames: Form.of(config, size, frames) for frames in sorted(set(lengths(domain)))}
    tars = shard_files(domain.path) if domain.kind == "shards" else []
    foreign = bool(tars) and not any(map(is_ours, tars))
    if domain.kind == "shards" and not foreign:
        shards = Shards(domain.path)
        cached = shards.settings.get("latents")
        latents = cached and cached["fingerprint"]  # a run without an autoencoder uses them unchecked
        if cached and "vae" in parts:
            latents = fingerprint(parts["vae"], config.autoencoder.scale)
        return {frames: ShardClips(shards, form, latents) for frames, form in forms.items()}
    if domain.kind in ("shards", "folder"):
        listed = read_shards(tars, domain.path) if foreign else read_captions(domain.path, domain.captions, out)
        entries = usable(listed, domain.path)
        warn_of_compressed(entries)
        options = domain.rate, domain.nominal_height
        return {frames: FolderClips(domain.path, entries, form, *options) for frames, form in forms.items()}
    scenes = _scenes(domain, size, config, parts, progress)
    scales = config.autoencoder.scale, config.extraction.condition_scale
    return {frames: SyntheticClips(scenes, frames, form.style_size, *scales) for frames, form in forms.items()}


def _scenes(
    domain: Domain, size: tuple[int, int], config: Config, parts: Mapping[str, Part], progress: Progress | None
) -> ClipCache | DrawnScenes:
    """Drawn scenes, or the scenes of a cache, which is filled first if necessary."""
    if size[0] != size[1] or max(lengths(domain)) > CLIP_FRAMES:
        raise UserError(
            f"Synthetic scenes are square and have up to {CLIP_FRAMES} frames. The recipe requests {size[1]}x{size[0]} "
            f"and {max(lengths(domain))} frames. Change height, width or frames."
        )
    if domain.path is None:
        return DrawnScenes(SCENES, domain.count, size[0])
    if missing := [PARTS[name] for name in _ENCODERS if name not in parts]:
        raise UserError(
            f"The scene cache in {domain.path} requires {' and '.join(missing)}, but the recipe's start.checkpoint and "
            "start.parts do not contain them. Add them, or remove the domain's path to draw the scenes each time."
        )
    encoders = hashlib.sha256("".join(fingerprint(parts[name]) for name in _ENCODERS).encode()).hexdigest()[:12]
    autoencoder = load_autoencoder(parts["vae"])
    if torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        # Encoding is most of the cost of the cache. bfloat16 halves it if the processor supports it (otherwise it takes
        # many times as long), and its rounding is far below the noise that the decoder was trained to tolerate.
        autoencoder.encoder.to(torch.bfloat16)
    towers = load_towers(config.towers, parts["text"], parts["image"])
    with torch.inference_mode():
        folder = domain.path / f"scenes-{size[0]}-{encoders}"
        return ClipCache(build_cache(folder, SCENES, domain.count, autoencoder, towers, size[0], progress))
