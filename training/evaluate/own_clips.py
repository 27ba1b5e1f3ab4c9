"""The user's own clips to evaluate on, of a folder of videos with captions or of shards; no more is known of them.

They and their conditions are what training gets of the same data. Conditions that no general measure asks for, depth,
sketches and the mask, are not made.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from training.data.caption_lists import LISTS, READERS, TEXTS
from training.data.folder import FolderClips, read_captions
from training.data.order import generator_for
from training.data.sample import BadSample
from training.data.sample_fields import Form
from training.data.shards import ShardClips, Shards, is_ours, shard_files
from training.evaluate.examples import Examples, Truth, after_first, joined
from training.evaluate.measures import motion_of
from vc_core.config import Config
from vc_core.errors import UserError
from vc_core.folders import files_below
from vc_core.progress import Progress, reported


def open_data(
    path: Path, config: Config, rate: float | None = None, nominal_height: int | None = None, out: Path | None = None
) -> FolderClips | ShardClips:
    """The clips of a folder, as a checkpoint of this config takes them.

    Where the folder has a list of captions, its videos are meant, else the shards of ./vc prepare in it or in folders
    below it, and where there are none, what `training.data.folder.read_captions` finds.

    Args:
        rate, nominal_height: of videos, see `training.recipe.Domain`; shards were prepared with theirs.
        out: of the folders below it, one that results go to.

    Raises:
        UserError: it is neither, or does not fit the checkpoint.
    """
    if not path.is_dir():
        raise UserError(f"{path}: is no folder: expected one of videos with captions, or of shards of ./vc prepare.")
    form = Form.of(config, (config.height // 8 * 8, config.width // 8 * 8), config.frames)
    tars = [] if any(each.name.lower() in LISTS for each in path.iterdir()) else shard_files(path)
    if any(map(is_ours, tars)):
        if rate or nominal_height:
            raise UserError(
                f"{path}: shards have the rate and nominal height that they were prepared with: leave out "
                "these options."
            )
        return ShardClips(Shards(path), form)
    if not any(each.suffix.lower() in {*READERS, *TEXTS} for each in files_below(path)) and not tars:
        raise UserError(
            f"{path}: holds neither shards nor videos with captions: expected .tar files, {LISTS[0]} or "
            "another list of captions, or a .txt beside each video."
        )
    entries = read_captions(path, out=out)
    if form.frames > 1 and (image := next((entry for entry in entries if entry.is_image(path)), None)):
        raise UserError(
            f"{path}: {image.file} is an image, and clips of {form.frames} frames are evaluated on: list "
            f"the videos alone in {LISTS[0]}."
        )
    return FolderClips(path, entries, form, rate, nominal_height)


def read_clips(data: FolderClips | ShardClips, count: int, progress: Progress | None = None) -> Examples:
    """At most so many of the data's clips, evenly spread over it; those that cannot be read are left out and told.

    A clip's frames are drawn by its place in the data, so that they are the same for every checkpoint.

    Raises:
        UserError: fewer than two can be read.
    """
    count = min(count, len(data))
    made, skipped = [], []
    for number in reported("clips", range(count), progress):
        try:
            made.append(_clip(data, number * len(data) // count))
        except BadSample as error:
            skipped.append(str(error))
    if len(made) < 2:
        why = f" ({'; '.join(reason.rstrip('.') for reason in skipped[:3])})" if skipped else ""
        raise UserError(
            f"{len(made)} of {count} clips of --data can be read{why}: expected at least 2, as conditions are swapped."
        )
    return joined(made, skipped)


def _clip(data: FolderClips | ShardClips, index: int) -> Examples:
    made = ("text", "style", "single_image", "motion")
    sample = data.sample(index, made, generator_for("evaluate", index))
    conditions, video = {name: tensor[None] for name, tensor in sample.conditions.items()}, sample.video[None]
    # Not the condition's own vectors: resizing has thinned those of points, and layouts have units of their own.
    motion = motion_of(video)
    told = covered(conditions["motion"], data.form.extraction.motion_layout, data.form.size)
    truth = Truth(video, motion, told, sample.style[None])
    return Examples([f"{index + 1}: {sample.key}"], [sample.text], conditions, truth)


def covered(command: Tensor, layout: str, size: tuple[int, int]) -> Tensor:
    """Where in a video of `size` (H, W) a motion condition (B, 2, F, h, w) says how anything moves, (B, F, H, W) bool.

    A dense one does everywhere but in the first frame, before which nothing moves. Points do where they stand: a zero
    is no point, nor does the network see it as one.
    """
    there = command.any(1) if layout == "points" else torch.ones_like(command[:, 0], dtype=torch.bool)
    return after_first(there, size)
