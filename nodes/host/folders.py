"""This pack's model folder in ComfyUI."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import folder_paths

from ...vc_core.checkpoint.reading import BUNDLED, BUNDLED_LORA
from ...vc_core.errors import UserError, spelled
from ...vc_core.extract.annotators import locate
from ...vc_core.folders import named_below
from ...vc_core.published import MODELS

FOLDER = "videocomposer"
"""The model folder: `models/videocomposer` and the paths named `videocomposer` in `extra_model_paths.yaml`."""
SUFFIXES = {".safetensors", ".pth", ".pt", ".ckpt"}
BUNDLED_NAME = f"{BUNDLED.stem} (bundled)"


def register() -> None:
    """Register the model folder in addition to those of the user's configuration, and add the bundled LoRA to the lists
    of ComfyUI's LoRA loaders. Idempotent."""
    default = os.path.join(folder_paths.models_dir, FOLDER)
    folder_paths.add_model_folder_path(FOLDER, default)
    folders, suffixes = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (folders, set(suffixes) | SUFFIXES)
    folder_paths.add_model_folder_path("loras", str(BUNDLED_LORA.parent))


def folders() -> list[Path]:
    """Return the folders that are searched for checkpoints and annotators."""
    return [Path(folder) for folder in folder_paths.get_folder_paths(FOLDER)]


def checkpoint_names() -> list[str]:
    """Return the entries of the checkpoint list: the bundled checkpoint, then the files in the model folder."""
    annotators = {model.name for model in MODELS if model.kind == "annotator"}
    names = folder_paths.get_filename_list(FOLDER)
    return [BUNDLED_NAME, *(name for name in names if Path(name).name not in annotators)]


def checkpoint_path(name: str) -> Path:
    """Return the file of an entry in the checkpoint list. Raises `UserError` if it does not exist."""
    if name == BUNDLED_NAME:
        return BUNDLED
    return _find("checkpoint", name, os.path.isfile)


def depth_models() -> list[str]:
    """Return the depth networks below the model folder: files, and folders with a `config.json`."""
    names = set()
    for top in folders():
        # No deeper: a model folder may be large, and this runs whenever a page is opened.
        configs = (config for pattern in ("*/config.json", "*/*/config.json") for config in top.glob(pattern))
        names |= {str(config.parent.relative_to(top)) for config in configs}
        names |= {
            name for name in folder_paths.get_filename_list(FOLDER) if "midas" in name.lower() or "dpt" in name.lower()
        }
    return sorted(names - {"."})


def fingerprint(*names: str) -> list[tuple[str, int, int]]:
    """Return paths, modification times and sizes of models, which change when a file is added or replaced."""
    paths = [*locate(names, folders()).values()]
    paths += [path for name in names for path in named_below(folders(), name)]
    return sorted((str(path), (stat := path.stat()).st_mtime_ns, stat.st_size) for path in set(paths))


def model_path(name: str) -> Path:
    """Return a file or folder below the model folder. Raises `UserError` if it does not exist."""
    return _find("model", name, os.path.exists)


def _find(kind: str, name: str, exists: Callable[[Path], bool]) -> Path:
    for path in filter(exists, named_below(folders(), name)):
        return path
    raise UserError(
        f"The {kind} '{spelled(name)}' is missing. Put it into {' or '.join(map(str, folders()))}, or choose another "
        f"{kind}."
    )
