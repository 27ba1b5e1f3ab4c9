"""`./vc get NAME ...`: download files that `./vc doctor` lists. Nothing else in this project downloads anything."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError, amount, brief
from ..published import MODELS, ModelFile, find_models, model_folders, place_of
from ..terminal import Bars


def as_text() -> str:
    """Return the list of available files, two lines for each."""
    lines = ["Files that ./vc get NAME downloads:"]
    for model in MODELS:
        about = ", ".join(filter(None, [amount(model.size) if model.size else "", model.licence]))
        lines += ["", f"{model.name}{f' ({about})' if about else ''}", f"  {model.purpose}; into {place_of(model)}"]
    return "\n".join(lines)


def get(names: Sequence[str], to: Path | None, progress: Bars) -> None:
    """Download files and print the path of each.

    Args:
        names: of `vc_core.published.MODELS`, in upper or lower case.
        to: the folder for the files; by default the folder in which the nodes look for each file. Without `to`, a file
            that is complete in any of the searched folders, under any name, is not downloaded again.

    Raises:
        UserError: an unknown name, before anything is downloaded; else as `vc_core.downloading.download`.
    """
    from ..downloading import download

    models = [_named(name) for name in names]
    existing = {} if to else find_models(model_folders())
    for model in models:
        complete = [path for path in existing.get(model, ()) if model.size and model.has_size_of(path)]
        path = complete[0] if complete else (to or place_of(model)) / model.name
        try:
            result = download(model.source, path, model.size, model.sha256, progress)
        except KeyboardInterrupt:
            progress.write(f"{path}: The received data is kept. Run the same command again to continue.")
            raise
        progress.write(f"{path}: {result}")


def _named(name: str) -> ModelFile:
    by_name = {model.name.lower(): model for model in MODELS}
    if model := by_name.get(name.lower()):
        return model
    words = {word: model for full, model in by_name.items() for word in (full, *re.split(r"[_./-]", full))}
    near = difflib.get_close_matches(name.lower(), list(words), n=1)
    suggestion = f"Did you mean {words[near[0]].name}? " if near else ""
    raise UserError(f"Unknown file '{brief(name)}'. {suggestion}Run ./vc get without a name to list all files.")
