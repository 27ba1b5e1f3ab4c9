"""Which ComfyUIs there are to test against."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[2]


class NoHost(Exception):
    """There is no ComfyUI to test against; the message says how to give one."""


class ComfyUI(NamedTuple):
    """An installed ComfyUI: its folder, a Python that has what it needs, and its version ("unknown" where it is)."""

    folder: Path
    python: Path
    version: str


def find_comfyuis() -> list[ComfyUI]:
    """Every ComfyUI there is, first the one to take where one is enough.

    They are those that COMFYUI_PATH names, several separated as in PATH; else the one whose custom_nodes holds this
    checkout, and each `ComfyUI*` in the home folder that has an environment. The newest comes first, but after the one
    that holds this checkout. COMFYUI_PYTHON names one Python for all of them or, in the same order, one for each that
    COMFYUI_PATH names; without it, each has an environment `.venv` or `venv` in its folder.

    Raises:
        NoHost: there is none.
        FileNotFoundError: COMFYUI_PATH or COMFYUI_PYTHON names what is none.
        ValueError: they name different numbers of them.
    """
    named, pythons = _listed("COMFYUI_PATH"), _listed("COMFYUI_PYTHON")
    if len(pythons) > 1 and len(pythons) != len(named):
        raise ValueError(
            f"COMFYUI_PYTHON names {len(pythons)} Pythons and COMFYUI_PATH {len(named)} ComfyUIs: name one Python for "
            "all of them, or one for each in the same order."
        )
    for folder in named:
        if not _is_comfyui(folder):
            raise FileNotFoundError(f"COMFYUI_PATH names {folder}, where no ComfyUI lies: expected one with a main.py.")
    for python in pythons:
        if not python.is_file():
            raise FileNotFoundError(
                f"COMFYUI_PYTHON names {python}, which is no file: expected a Python with ComfyUI's needs."
            )
    holders = [] if named else list(filter(_is_comfyui, _holders()))
    homes = [] if named else filter(_is_comfyui, sorted(Path.home().glob("ComfyUI*")))
    folders = named or list({folder.resolve(): folder for folder in (*holders, *homes)}.values())
    if not folders:
        raise NoHost("no ComfyUI found: set COMFYUI_PATH to a checkout of it, and COMFYUI_PYTHON to its Python")
    if len(pythons) < 2:
        pythons = [pythons[0] if pythons else _own_python(folder) for folder in folders]
    found = [
        ComfyUI(folder.absolute(), python.absolute(), version_of(folder))
        for folder, python in zip(folders, pythons, strict=True)
        if python is not None
    ]
    if named and len(found) < len(named):
        folder = folders[pythons.index(None)]
        raise FileNotFoundError(f"{folder} has no environment: set COMFYUI_PYTHON to a Python with ComfyUI's needs.")
    if not found:
        raise NoHost(f"no Python found for {folders[0]}: set COMFYUI_PYTHON to one that has what ComfyUI needs")
    homes_of_this = [folder.resolve() for folder in holders]
    return sorted(found, key=lambda one: (one.folder.resolve() in homes_of_this, _number(one.version)), reverse=True)


def version_of(folder: Path) -> str:
    """A ComfyUI's version by its `comfyui_version.py`."""
    file = folder / "comfyui_version.py"
    found = re.search(r"__version__ *= *[\"'](.+?)[\"']", file.read_text("utf-8") if file.is_file() else "")
    return found[1] if found else "unknown"


def _number(version: str) -> tuple[int, ...]:
    """A version to compare: 0.33.0 is newer than 0.3.64, and every version newer than an unknown one."""
    return tuple(map(int, re.findall(r"\d+", version)))


def _listed(variable: str) -> list[Path]:
    return [Path(part) for part in os.environ.get(variable, "").split(os.pathsep) if part]


def _is_comfyui(folder: Path) -> bool:
    return (folder / "main.py").is_file() and (folder / "comfy" / "model_base.py").is_file()


def _holders() -> Iterator[Path]:
    """The folders that have this checkout in their custom_nodes, itself or a link to it."""
    for start in (Path(os.environ.get("PWD", ".")).absolute(), REPOSITORY):  # the shell's own PWD keeps the links
        if start.resolve().is_relative_to(REPOSITORY):
            yield from (parent.parent for parent in start.parents if parent.name == "custom_nodes")


def _own_python(folder: Path) -> Path | None:
    places = ("bin/python", "Scripts/python.exe")
    pythons = (folder / environment / place for environment in (".venv", "venv") for place in places)
    return next(filter(Path.is_file, pythons), None)
