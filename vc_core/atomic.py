"""Files and folders that appear whole or not at all: written beside the target under another name, then renamed."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .disk import WriteError, writing
from .errors import UserError


@contextmanager
def written_beside(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renames it to `path` on success, removes it on any failure.

    Raises:
        UserError: `path` is a folder, a device or a pipe, or its folder does not exist; a `WriteError` for whatever a
            failed write raises inside.
    """
    path = Path(path)
    with writing(path):
        check_place(path)
        temporary = path.with_name(f".{path.stem}.{_own()}{path.suffix}")
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            with suppress(OSError):  # there is none, or a disk that can only be read says so again
                temporary.unlink()


@contextmanager
def folder_beside(path: str | os.PathLike) -> Iterator[Path]:
    """Yields an empty folder beside `path`; renames it to `path` on success, removes it on any failure.

    A folder that is already at `path` is replaced as a whole: whether it may be is for the caller to know. No system
    swaps two folders in one step everywhere, so between two renames there is none; a failure there puts the old one
    back.

    Raises:
        UserError: `path` is there and no folder, or its folder does not exist; a `WriteError` for whatever a failed
            write raises inside.
    """
    path = Path(path).resolve()  # of a symbolic link, what it points to is replaced
    with writing(path):
        check_folder(path)
        own = _own()
        new, old = (path.with_name(f".{path.name}.{own}.{what}") for what in ("new", "old"))
        try:
            new.mkdir()
            yield new
            if path.exists():
                os.rename(path, old)
            os.rename(new, path)
        finally:
            if old.exists() and not path.exists():
                os.rename(old, path)
            for leftover in (new, old):
                shutil.rmtree(leftover, ignore_errors=True)


def _own() -> str:
    """What tells this write from others: in containers that share a disk all processes may have the same number."""
    return f"{os.getpid()}-{secrets.token_hex(4)}"


def check_place(path: Path) -> None:
    """Refuses a file to write that is a folder, a device or a pipe, or in no folder. Raises `UserError`."""
    if path.exists() and not path.is_file():  # a device would be replaced by a file, for everybody
        raise UserError(f"{path}: is {_what(path)}, and a file to write was expected: give a file name.")
    _check_parent(path)


def check_folder(path: Path) -> None:
    """Refuses a folder to write that is something else, the current folder, or in none. Raises `UserError`."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is {_what(path)}, and a folder to write was expected: give another name.")
    if path.resolve() == Path.cwd():
        raise UserError(f"{path}: is the current folder, which cannot be replaced: name a folder in it.")
    _check_parent(path)


def _what(path: Path) -> str:
    return "a folder" if path.is_dir() else "a file" if path.is_file() else "a device or a pipe"


def _check_parent(path: Path) -> None:
    if not path.parent.is_dir():
        raise UserError(f"{path}: its folder does not exist: make the folder {path.parent} or choose another one.")
    if not os.access(path.parent, os.W_OK | os.X_OK):  # told before the minutes that the work takes
        raise WriteError(
            f"{path}: cannot be written, as its folder {path.parent} allows no new files (no permission, or a disk "
            "that can only be read): change that, or choose another one."
        )
