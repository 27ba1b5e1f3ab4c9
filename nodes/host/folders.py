"""Where ComfyUI keeps this pack's models."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import folder_paths

from ...vc_core.checkpoint.reading import BUNDLED
from ...vc_core.errors import UserError, spelled
from ...vc_core.extract.annotators import locate
from ...vc_core.folders import named_below
from ...vc_core.published import MODELS

FOLDER = "videocomposer"
"""The model folder, `models/videocomposer` and whatever `extra_model_paths.yaml` names `videocomposer`."""
SUFFIXES = {".safetensors", ".pth", ".pt", ".ckpt"}
BUNDLED_NAME = f"{BUNDLED.stem} (bundled)"


def register() -> None:
    """Makes the model folder known, beside those that a user's configuration has already named. Idempotent."""
    default = os.path.join(folder_paths.models_dir, FOLDER)
    folder_paths.add_model_folder_path(FOLDER, default)
    folders, suffixes = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (folders, set(suffixes) | SUFFIXES)


def folders() -> list[Path]:
    """The folders in which checkpoints and annotators' files are looked for."""
    return [Path(folder) for folder in folder_paths.get_folder_paths(FOLDER)]


def checkpoint_names() -> list[str]:
    """What the checkpoint list shows: the bundled one, then the files of the model folder."""
    annotators = {model.name for model in MODELS if model.kind == "annotator"}
    names = folder_paths.get_filename_list(FOLDER)
    return [BUNDLED_NAME, *(name for name in names if Path(name).name not in annotators)]


def checkpoint_path(name: str) -> Path:
    """The file of a name in the list. Raises `UserError` where there is none."""
    if name == BUNDLED_NAME:
        return BUNDLED
    return _found("checkpoint ", name, os.path.isfile)


def depth_models() -> list[str]:
    """Depth networks that can be chosen: files, and folders with a `config.json`, below the model folder."""
    found = set()
    for top in folders():
        # No deeper: a model folder may be large, and this is asked whenever a page is opened.
        configs = (config for pattern in ("*/config.json", "*/*/config.json") for config in top.glob(pattern))
        found |= {str(config.parent.relative_to(top)) for config in configs}
        found |= {
            name for name in folder_paths.get_filename_list(FOLDER) if "midas" in name.lower() or "dpt" in name.lower()
        }
    return sorted(found - {"."})


def fingerprint(*names: str) -> list[tuple[str, int, int]]:
    """What tells whether models below the folder were put there or replaced: paths, times of change and sizes."""
    paths = [*locate(names, folders()).values()]
    paths += [path for name in names for path in named_below(folders(), name)]
    return sorted((str(path), (stat := path.stat()).st_mtime_ns, stat.st_size) for path in set(paths))


def model_path(name: str) -> Path:
    """A file or folder below the model folder. Raises `UserError` where there is none."""
    return _found("", name, os.path.exists)


def _found(what: str, name: str, there: Callable[[Path], bool]) -> Path:
    for path in filter(there, named_below(folders(), name)):
        return path
    raise UserError(
        f"There is no {what}'{spelled(name)}' in {', '.join(map(str, folders()))}: put it there, or choose another one."
    )
