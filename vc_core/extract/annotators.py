"""Common code of the annotators' networks: find their files, say what to download if one is missing, and run them
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
"""One or several folders with annotators' files; None: `vc_core.published.model_folders`."""

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of RGB in [0, 1], for a network's normalization."""

IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def normalised(frames: Tensor, statistics: Statistics) -> Tensor:
    """Normalize RGB (N, 3, H, W) in [0, 1] for a network."""
    mean, std = (frames.new_tensor(values).view(3, 1, 1) for values in statistics)
    return (frames - mean) / std


def as_folders(folders: Folders) -> list[Path]:
    """Return the folders to search, as a list."""
    if folders is None:
        return model_folders()
    several = [folders] if isinstance(folders, (str, PathLike)) else folders
    return [Path(folder).expanduser() for folder in several]


def locate(names: Sequence[str], folders: Folders = None) -> dict[str, Path]:
    """Find files of `vc_core.published.MODELS`. Returns published name -> path, for those that exist.

    Subfolders are searched too, and renamed files are recognized by their size. Of several files, one of the published
    size comes first.
    """
    models = find_models(as_folders(folders)).items()
    # `min` returns the first of equals.
    best = {model.name: min(paths, key=lambda path: not model.has_size_of(path)) for model, paths in models if paths}
    return {name: best[name] for name in names if name in best}


def what_to_get(names: Sequence[str], folders: Folders = None) -> str:
    """Describe missing files: name, size, hash if known, where to download them and where to put them."""
    files = {file.name: file for file in MODELS}
    parts = [
        f"{name} ({files[name].size / 1e6:.1f} MB, SHA-256 {files[name].sha256 or 'not published'}) from "
        f"{files[name].source}"
        for name in names
    ]
    folder, them = as_folders(folders)[0], "it" if len(parts) == 1 else "them"
    command = f"./vc get {' '.join(names)} --to {folder}"
    return f"Run {command}, or download {' and '.join(parts)} and put {them} into {folder}"


@torch.no_grad()
def per_frame(
    network: Callable[[Tensor], Tensor], video: Tensor, what: str, at_once: int = 4, progress: Progress | None = None
) -> Tensor:
    """Run a network of frames (N, 3, H, W) over a video (B, 3, F, H, W). Returns maps (B, 1, F, H, W) on its device.

    `at_once` is the number of frames per forward. Progress is called as `progress(what, done, total)`, in frames.
    Raises UserError for a video of another shape.
    """
    if video.dim() != 5 or video.shape[1] != 3:
        raise UserError(
            f"The video for {what} has shape {tuple(video.shape)}. Expected (batch, 3, frames, height, width)."
        )
    frames, maps, done = video.transpose(1, 2).flatten(0, 1), [], 0
    for piece in frames.split(at_once):
        maps.append(network(piece).to(video.device))
        done += len(piece)
        if progress is not None:
            progress(what, done, len(frames))
    return torch.cat(maps).unflatten(0, (video.shape[0], -1)).transpose(1, 2)
