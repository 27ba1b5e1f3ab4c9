"""A recipe's domains as data sets."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch

from training.data.cache import ClipCache, build
from training.data.caches import fingerprint
from training.data.folder import FolderClips, read_captions, usable
from training.data.foreign import read_shards, warn_of_compressed
from training.data.making import Form
from training.data.sample import Clips
from training.data.shards import ShardClips, Shards, is_ours, shard_files
from training.data.synthetic import CLIP, DrawnScenes, SyntheticClips
from training.recipe import Domain
from vc_core.checkpoint import PARTS, Part
from vc_core.config import Config
from vc_core.encoders.autoencoder import load_autoencoder
from vc_core.encoders.clip import load_towers
from vc_core.errors import UserError
from vc_core.progress import Progress

SCENES = 1
"""Seed of the scenes that are trained on; others are for measuring."""

_ENCODERS = ("vae", "text", "image")


def lengths(domain: Domain) -> tuple[int, ...]:
    """Numbers of frames that the steps of a domain draw from, see `Share.frames`. Raises `UserError`."""
    if any(frames < 1 for frames in domain.lengths):
        raise UserError(f"The recipe's lengths are {domain.lengths}: expected numbers of frames, 1 or more.")
    return domain.lengths or (domain.frames,)


def open_clips(
    domain: Domain,
    size: tuple[int, int],
    config: Config,
    parts: Mapping[str, Part],
    progress: Progress | None = None,
    out: Path | None = None,
) -> dict[int, Clips]:
    """The data set of a domain, by number of frames, for `training.data.loading.load`.

    Of several processes on one disk the first should come before the others where a cache of synthetic scenes is to be
    filled or shards have no index yet: each would do the same.

    Args:
        size: (height, width) of the videos.
        config: of the network, which says how its conditions are made.
        parts: the run's autoencoder and towers. Latents that shards hold must be of this autoencoder.
        progress: called as `progress("scenes", done, count)` while scenes are cached.
        out: the run's folder, which is no data where it lies among them.

    Raises:
        UserError: what the domain names is missing or does not fit the run.
    """
    if domain.kind != "synthetic" and domain.path is None:
        raise UserError(f"The recipe has data of the kind {domain.kind} without a path: name the folder of it.")
    forms = [Form.of(config, size, frames) for frames in sorted(set(lengths(domain)))]
    clips: Callable[[Form], Clips]
    foreign = domain.kind == "shards" and others_shards(domain.path)
    if domain.kind == "shards" and not foreign:
        shards = Shards(domain.path)
        clips = partial(ShardClips, shards, latents=_latents(shards, config, parts))
    elif domain.kind in ("shards", "folder"):
        found = read_shards(foreign, domain.path) if foreign else read_captions(domain.path, domain.captions, out)
        entries = usable(found, domain.path)
        warn_of_compressed(entries)
        clips = partial(FolderClips, domain.path, entries, rate=domain.rate, nominal_height=domain.nominal_height)
    else:
        scenes = _scenes(domain, size, config, parts, progress)
        clips = partial(_synthetic, scenes, config.autoencoder.scale)
    return {form.frames: clips(form) for form in forms}


def others_shards(folder: Path) -> list[Path]:
    """The shards of a folder where none of them is of `./vc prepare`."""
    files = shard_files(folder)
    return [] if any(map(is_ours, files)) else files


def _latents(shards: Shards, config: Config, parts: Mapping[str, Part]) -> str | None:
    """Of which autoencoder cached latents must be; a run without one takes them as they are."""
    cached = shards.settings.get("latents")
    if cached is None or "vae" not in parts:
        return cached and cached["fingerprint"]
    return fingerprint(parts["vae"], config.autoencoder.scale)


def _synthetic(scenes: ClipCache | DrawnScenes, scale: float, form: Form) -> SyntheticClips:
    return SyntheticClips(scenes, form.frames, form.style_size, scale, form.extraction.condition_scale)


def _scenes(
    domain: Domain, size: tuple[int, int], config: Config, parts: Mapping[str, Part], progress: Progress | None
) -> ClipCache | DrawnScenes:
    """Drawn scenes, or those of a cache, which is filled where it must be."""
    if size[0] != size[1] or max(lengths(domain)) > CLIP:
        raise UserError(
            f"Synthetic scenes are squares of up to {CLIP} frames, and the recipe asks for {size[1]}x{size[0]} and "
            f"{max(lengths(domain))} frames: change height, width or frames."
        )
    if domain.path is None:
        return DrawnScenes(SCENES, domain.count, size[0])
    if missing := [PARTS[name] for name in _ENCODERS if name not in parts]:
        raise UserError(
            f"The cache of scenes in {domain.path} needs {' and '.join(missing)}, which the recipe's start.checkpoint "
            "and start.parts do not bring: add them, or leave out the domain's path to draw the scenes anew each time."
        )
    made_with = hashlib.sha256("".join(fingerprint(parts[name]) for name in _ENCODERS).encode()).hexdigest()[:12]
    autoencoder = load_autoencoder(parts["vae"])
    if torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        # Encoding is most of the cost of the cache; bfloat16 halves it where the processor has it (elsewhere it takes
        # many times as long), and is far finer than the noise that the decoder was trained to tolerate.
        autoencoder.encoder.to(torch.bfloat16)
    towers = load_towers(config.towers, parts["text"], parts["image"])
    with torch.inference_mode():
        folder = domain.path / f"scenes-{size[0]}-{made_with}"
        paths = build(folder, SCENES, 0, domain.count, autoencoder, towers, size[0], progress)
    return ClipCache(paths)
