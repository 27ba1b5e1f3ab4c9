"""What the annotators' networks share: where their files lie, what to get where one is missing, and how they are run
over a video."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError
from ..progress import Progress
from ..published import MODELS, find_models, model_folders

Folders = str | PathLike | Sequence[str | PathLike] | None
"""A folder, or several, that hold files of annotators; None for those of `vc_core.published.model_folders`."""

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and deviation of RGB in [0, 1], by which a network takes its pictures."""

IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def normalised(frames: Tensor, statistics: Statistics) -> Tensor:
    """RGB (N, 3, H, W) in [0, 1] as a network takes it."""
    mean, std = (frames.new_tensor(values).view(3, 1, 1) for values in statistics)
    return (frames - mean) / std


def as_folders(folders: Folders) -> list[Path]:
    """The folders that are searched, as a list."""
    if folders is None:
        return model_folders()
    several = [folders] if isinstance(folders, (str, PathLike)) else folders
    return [Path(folder).expanduser() for folder in several]


def locate(names: Sequence[str], folders: Folders = None) -> dict[str, Path]:
    """Where files of `vc_core.published.MODELS` lie: by published name, those that are found.

    Folders below the given ones are searched too, and renamed files are known by their size. Of several, one of the
    published size comes first.
    """
    found = find_models(as_folders(folders)).items()
    # `min` takes the first of equals.
    best = {model.name: min(paths, key=lambda path: not model.has_size_of(path)) for model, paths in found if paths}
    return {name: best[name] for name in names if name in best}


def what_to_get(names: Sequence[str], folders: Folders = None) -> str:
    """Of files that are missing: name, size, hash where known, where to get them and where to put them."""
    files = {file.name: file for file in MODELS}
    told = [
        f"{name} ({files[name].size / 1e6:.1f} MB, SHA-256 {files[name].sha256 or 'not published'}) from "
        f"{files[name].source}"
        for name in names
    ]
    folder, them = as_folders(folders)[0], "it" if len(told) == 1 else "them"
    return f"get {' and '.join(told)} and put {them} into {folder}, as ./vc get {' '.join(names)} --to {folder} does"


@torch.no_grad()
def per_frame(
    network: Callable[[Tensor], Tensor], video: Tensor, what: str, at_once: int = 4, progress: Progress | None = None
) -> Tensor:
    """Maps (B, 1, F, H, W) of a video (B, 3, F, H, W), on its device, by a network of frames (N, 3, H, W).

    So many frames `at_once`; progress is called as `progress(what, done, total)`, in frames. Raises UserError for a
    video of another shape.
    """
    if video.dim() != 5 or video.shape[1] != 3:
        raise UserError(
            f"The video for {what} has the shape {tuple(video.shape)}: expected (batch, 3, frames, height, width)."
        )
    frames, maps, done = video.transpose(1, 2).flatten(0, 1), [], 0
    for piece in frames.split(at_once):
        maps.append(network(piece).to(video.device))
        done += len(piece)
        if progress is not None:
            progress(what, done, len(frames))
    return torch.cat(maps).unflatten(0, (video.shape[0], -1)).transpose(1, 2)
