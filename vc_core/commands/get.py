"""`./vc get NAME ...`: downloads files that `./vc doctor` lists. Nothing else of this project does."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError, amount, brief
from ..published import MODELS, ModelFile, find_models, model_folders, place_of
from ..terminal import Bars


def as_text() -> str:
    """What there is to get, two lines for each."""
    lines = ["What ./vc get NAME downloads:"]
    for model in MODELS:
        about = ", ".join(filter(None, [amount(model.size) if model.size else "", model.licence]))
        lines += ["", f"{model.name}{f' ({about})' if about else ''}", f"  {model.purpose}; into {place_of(model)}"]
    return "\n".join(lines)


def get(names: Sequence[str], to: Path | None, progress: Bars) -> None:
    """Downloads files, and tells of each where it is.

    Args:
        names: of `vc_core.published.MODELS`, in any case.
        to: the folder for them, instead of that where the nodes read each. Those that are in any of the searched
            folders, whole and under whatever name, are not downloaded into these again.

    Raises:
        UserError: an unknown name, before anything is downloaded; else as `vc_core.downloading.download`.
    """
    from ..downloading import download

    models = [_named(name) for name in names]
    there = {} if to else find_models(model_folders())
    for model in models:
        whole = [path for path in there.get(model, ()) if model.size and model.has_size_of(path)]
        path = whole[0] if whole else (to or place_of(model)) / model.name
        try:
            done = download(model.source, path, model.size, model.sha256, progress)
        except KeyboardInterrupt:
            progress.write(f"{path}: what has come is kept, and the same command goes on from there")
            raise
        progress.write(f"{path}: {done}")


def _named(name: str) -> ModelFile:
    known = {model.name.lower(): model for model in MODELS}
    if model := known.get(name.lower()):
        return model
    words = {word: model for full, model in known.items() for word in (full, *re.split(r"[_./-]", full))}
    near = difflib.get_close_matches(name.lower(), list(words), n=1)
    meant = f"{words[near[0]].name}, or another one" if near else "one"
    raise UserError(f"{brief(name)}: is no file that ./vc get knows: expected {meant} of those that it lists.")
