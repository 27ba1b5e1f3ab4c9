"""The user's own clips for evaluation, from a folder of videos with captions or from shards.

Clips and conditions are the same as in training on this data. Conditions that no general measure uses (depth, sketches
and the mask) are not extracted.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from training.data.caption_lists import LISTS, READERS, TEXTS
from training.data.folder import FolderClips, read_captions
from training.data.order import generator_for
from training.data.sample import BadSample
from training.data.sample_fields import Form
from training.data.shards import ShardClips, Shards, is_ours, shard_files
from training.evaluate.clip_list import clip_record
from training.evaluate.examples import Examples, Truth, after_first, joined, motion_of
from vc_core.config import Config
from vc_core.errors import UserError
from vc_core.folders import files_below
from vc_core.progress import Progress, reported

Chosen = tuple[int, int]
"""Index of a clip in the data, and the number that its random start depends on."""


def open_data(
    path: Path, config: Config, rate: float | None = None, nominal_height: int | None = None, out: Path | None = None
) -> FolderClips | ShardClips:
    """Open the clips of a folder for a checkpoint of this config.

    If the folder has a list of captions, its videos are used; otherwise the shards from ./vc prepare in it or below it;
    otherwise what `training.data.folder.read_captions` finds.

    Args:
        rate, nominal_height: for videos, see `training.recipe.Domain`; shards contain their own.
        out: folder of the results, which is ignored if it is inside `path`.

    Raises:
        UserError: the folder contains neither, or does not match the checkpoint.
    """
    if not path.is_dir():
        raise UserError(
            f"{path} is not a folder. Pass a folder of videos with captions, or of shards from ./vc prepare."
        )
    form = Form.of(config, (config.height // 8 * 8, config.width // 8 * 8), config.frames)
    tars = [] if any(file.name.lower() in LISTS for file in path.iterdir()) else shard_files(path)
    if any(map(is_ours, tars)):
        if rate or nominal_height:
            raise UserError(
                f"{path} contains shards, which already have a rate and nominal height. Leave out --rate and "
                "--nominal-height."
            )
        return ShardClips(Shards(path), form)
    if not any(file.suffix.lower() in {*READERS, *TEXTS} for file in files_below(path)) and not tars:
        raise UserError(
            f"{path} contains neither shards nor videos with captions. Expected .tar files, {LISTS[0]} or another list "
            "of captions, or a .txt next to each video."
        )
    entries = read_captions(path, out=out)
    if form.frames > 1 and (image := next((entry for entry in entries if entry.is_image(path)), None)):
        raise UserError(
            f"Expected videos with {form.frames} frames in {path}, but {image.file} is an image. List only videos in "
            f"{LISTS[0]}."
        )
    return FolderClips(path, entries, form, rate, nominal_height)


def read_clips(
    data: FolderClips | ShardClips, count: int, progress: Progress | None = None, chosen: Sequence[Chosen] = ()
) -> Examples:
    """Read at most `count` of the data's clips, evenly spread, or the `chosen` ones; unreadable ones are skipped and
    listed.

    The random frames of a clip depend only on its index, so that they are the same for every checkpoint.

    Raises:
        UserError: fewer than two clips can be read.
    """
    count = min(count, len(data))
    spread = [number * len(data) // count for number in range(count)]
    chosen = chosen or list(zip(spread, spread, strict=True))
    clips, skipped = [], []
    for index, number in reported("clips", chosen, progress):
        try:
            clips.append(_clip(data, index, number))
        except BadSample as error:
            skipped.append(str(error))
    if len(clips) < 2:
        first = f" The first problems: {' '.join(skipped[:3])}" if skipped else ""
        raise UserError(
            "Expected at least 2 readable clips in --data, because conditions are swapped between clips, but only "
            f"{len(clips)} of {len(chosen)} can be read. Add clips.{first}"
        )
    return joined(clips, skipped)


def _clip(data: FolderClips | ShardClips, index: int, number: int) -> Examples:
    sample = data.sample(index, ("text", "style", "single_image", "motion"), generator_for("evaluate", number))
    conditions, video = {name: tensor[None] for name, tensor in sample.conditions.items()}, sample.video[None]
    # Not the condition's own vectors: resizing has thinned those of points, and the layouts have different units.
    motion = motion_of(video)
    mask = covered(conditions["motion"], data.form.extraction.motion_layout, data.form.size)
    truth = Truth(video, motion, mask, sample.style[None], vectors=motion)
    source = clip_record(data, index, number)
    return Examples([f"{number + 1}: {sample.key}"], [sample.text], conditions, truth, sources=[source])


def covered(condition: Tensor, layout: str, size: tuple[int, int]) -> Tensor:
    """Return where in a video of `size` (H, W) a motion condition (B, 2, F, h, w) defines motion, (B, F, H, W) bool.

    A dense condition defines it everywhere except in the first frame, which has no previous frame. Points define it
    only at their positions; a zero vector is not a point for the network either.
    """
    defined = condition.any(1) if layout == "points" else torch.ones_like(condition[:, 0], dtype=torch.bool)
    return after_first(defined, size)
