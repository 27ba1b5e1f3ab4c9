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
    forms = {frames: Form.of(config, size, frames) for frames in sorted(set(lengths(domain)))}
    tars = shard_files(domain.path) if domain.kind == "shards" else []
    foreign = bool(tars) and not any(map(is_ours, tars))
    if domain.kind == "shards" and not foreign:
        shards = Shards(domain.path)
        cached = shards.settings.get("latents")
        latents = cached and cached["fingerprint"]  # a run without an autoencoder takes them as they are
        if cached and "vae" in parts:
            latents = fingerprint(parts["vae"], config.autoencoder.scale)
        return {frames: ShardClips(shards, form, latents) for frames, form in forms.items()}
    if domain.kind in ("shards", "folder"):
        found = read_shards(tars, domain.path) if foreign else read_captions(domain.path, domain.captions, out)
        entries = usable(found, domain.path)
        warn_of_compressed(entries)
        given = domain.rate, domain.nominal_height
        return {frames: FolderClips(domain.path, entries, form, *given) for frames, form in forms.items()}
    scenes = _scenes(domain, size, config, parts, progress)
    scales = config.autoencoder.scale, config.extraction.condition_scale
    return {frames: SyntheticClips(scenes, frames, form.style_size, *scales) for frames, form in forms.items()}


def _scenes(
    domain: Domain, size: tuple[int, int], config: Config, parts: Mapping[str, Part], progress: Progress | None
) -> ClipCache | DrawnScenes:
    """Drawn scenes, or those of a cache, which is filled where it must be."""
    if size[0] != size[1] or max(lengths(domain)) > CLIP_FRAMES:
        raise UserError(
            f"Synthetic scenes are squares of up to {CLIP_FRAMES} frames, and the recipe asks for "
            f"{size[1]}x{size[0]} and {max(lengths(domain))} frames: change height, width or frames."
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
        return ClipCache(build_cache(folder, SCENES, domain.count, autoencoder, towers, size[0], progress))
