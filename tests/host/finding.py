"""Find the installed ComfyUIs to test against."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[2]


class NoHost(Exception):
    """There is no ComfyUI to test against. The message says how to set one."""


class ComfyUI(NamedTuple):
    """An installed ComfyUI: its folder, a Python with its requirements, and its version, which may be "unknown"."""

    folder: Path
    python: Path
    version: str


def find_comfyuis() -> list[ComfyUI]:
    """Return all ComfyUIs, in the order in which tests prefer them.

    COMFYUI_PATH names them, separated as in PATH. Without it, they are the ComfyUI whose custom_nodes contains this
    checkout, and each `ComfyUI*` with an environment in the home folder. The newest comes first, but after the one that
    contains this checkout. COMFYUI_PYTHON names one Python for all, or one for each in COMFYUI_PATH in the same order.
    Without it, each has an environment `.venv` or `venv` in its folder.

    Raises:
        NoHost: there is no ComfyUI.
        FileNotFoundError: COMFYUI_PATH names no ComfyUI, or COMFYUI_PYTHON no file.
        ValueError: they name different numbers of ComfyUIs and Pythons.
    """
    named, pythons = _listed("COMFYUI_PATH"), _listed("COMFYUI_PYTHON")
    if len(pythons) > 1 and len(pythons) != len(named):
        raise ValueError(
            f"COMFYUI_PYTHON names {len(pythons)} Pythons and COMFYUI_PATH {len(named)} ComfyUIs. Name one Python for "
            "all, or one for each in the same order."
        )
    for folder in named:
        if not _is_comfyui(folder):
            raise FileNotFoundError(
                f"Expected a ComfyUI with a main.py, but COMFYUI_PATH names {folder}. Correct COMFYUI_PATH."
            )
    for python in pythons:
        if not python.is_file():
            raise FileNotFoundError(
                f"Expected a Python with ComfyUI's requirements, but COMFYUI_PYTHON names {python}, which is not a "
                "file."
            )
    holders = [] if named else list(filter(_is_comfyui, _holders()))
    homes = [] if named else filter(_is_comfyui, sorted(Path.home().glob("ComfyUI*")))
    folders = named or list({folder.resolve(): folder for folder in (*holders, *homes)}.values())
    if not folders:
        raise NoHost("no ComfyUI found. Set COMFYUI_PATH to its folder, and COMFYUI_PYTHON to its Python")
    if len(pythons) < 2:
        pythons = [pythons[0] if pythons else _own_python(folder) for folder in folders]
    comfyuis = [
        ComfyUI(folder.absolute(), python.absolute(), version_of(folder))
        for folder, python in zip(folders, pythons, strict=True)
        if python is not None
    ]
    if named and len(comfyuis) < len(named):
        folder = folders[pythons.index(None)]
        raise FileNotFoundError(
            f"{folder} has no environment. Set COMFYUI_PYTHON to a Python with ComfyUI's requirements."
        )
    if not comfyuis:
        raise NoHost(f"no Python found for {folders[0]}. Set COMFYUI_PYTHON to one with ComfyUI's requirements")
    homes_of_this = [folder.resolve() for folder in holders]
    return sorted(comfyuis, key=lambda c: (c.folder.resolve() in homes_of_this, _number(c.version)), reverse=True)


def version_of(folder: Path) -> str:
    """Return a ComfyUI's version from its `comfyui_version.py`."""
    file = folder / "comfyui_version.py"
    match = re.search(r"__version__ *= *[\"'](.+?)[\"']", file.read_text("utf-8") if file.is_file() else "")
    return match[1] if match else "unknown"


def _number(version: str) -> tuple[int, ...]:
    """Return a version for comparison: 0.33.0 is newer than 0.3.64, and every version is newer than an unknown one."""
    return tuple(map(int, re.findall(r"\d+", version)))


def _listed(variable: str) -> list[Path]:
    return [Path(part) for part in os.environ.get(variable, "").split(os.pathsep) if part]


def _is_comfyui(folder: Path) -> bool:
    return (folder / "main.py").is_file() and (folder / "comfy" / "model_base.py").is_file()


def _holders() -> Iterator[Path]:
    """Yield the folders whose custom_nodes contains this checkout or a link to it."""
    for start in (Path(os.environ.get("PWD", ".")).absolute(), REPOSITORY):  # the shell's own PWD keeps links
        if start.resolve().is_relative_to(REPOSITORY):
            yield from (parent.parent for parent in start.parents if parent.name == "custom_nodes")


def _own_python(folder: Path) -> Path | None:
    places = ("bin/python", "Scripts/python.exe")
    pythons = (folder / environment / place for environment in (".venv", "venv") for place in places)
    return next(filter(Path.is_file, pythons), None)
