"""Writing: files and folders that appear whole or not at all, and what a disk answers where it cannot be written, as
one sentence."""

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors that space mends."""

_ADVICE = {
    **dict.fromkeys(FULL, "make room on its disk, then do the same again"),
    errno.EFBIG: "its disk takes no file of that size, so choose another place",
    errno.EROFS: "its disk can only be read, so choose another place",
    **dict.fromkeys((errno.EACCES, errno.EPERM), "change its permissions, or choose another place"),
    errno.ENAMETOOLONG: "give a shorter name",
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "close other programs, or allow more open files (ulimit -n)"),
}
_OF_WRITING = (*FULL, errno.EFBIG, errno.EROFS)

# Libraries whose own errors stand for the system's where they write, by the module of the error's class; torch has none
# of its own for it.
_LIBRARIES = ("safetensors", "safetensors_rust", "av")
_OF_TORCH = re.compile(r"inline_container|PytorchStreamWriter|write\(\): fd")


class WriteError(UserError):
    """A file or folder that cannot be written. `number` is the system's of the error (`errno`); None where a library
    does not tell it."""

    __module__ = "vc_core"

    def __init__(self, sentence: str, number: int | None = None) -> None:
        super().__init__(sentence)
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (str(self), self.number)  # by its home, since its module is only what is shown


def _again(sentence: str, number: int | None) -> WriteError:
    return WriteError(sentence, number)


def write_error(error: BaseException, path: str | os.PathLike | None = None) -> WriteError | None:
    """The sentence for what a failed write has raised, in whatever library; None for an error of another kind. `path`
    was to be written, for users to know; None: what the error names."""
    text = " ".join(str(error).split())
    number, reason, named = None, text[:200] or type(error).__name__, None
    if isinstance(error, OSError):
        number, named = error.errno, error.filename
        reason = error.strerror or reason
    elif type(error).__module__.partition(".")[0] in _LIBRARIES:
        if told := re.search(r"\(os error (\d+)\)", text):  # Rust's words
            number = int(told[1])
            reason = os.strerror(number)
    elif not (isinstance(error, RuntimeError) and _OF_TORCH.search(text)):
        return None
    if path is None and number is None:
        return None  # nobody said that it was about writing
    where = path if path is not None else named if isinstance(named, str | bytes) else None
    place = "A file or the output" if where is None else os.fsdecode(where)
    what = "written" if path is not None or number in _OF_WRITING else "read or written"
    advice = _ADVICE.get(number, "check its folder, and its disk's space and health")
    return WriteError(f"{place}: cannot be {what} ({reason}): {advice}.", number)


@contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Raises a `WriteError` that names `path` for whatever a failed write raises inside."""
    try:
        yield
    except Exception as error:
        told = write_error(error, path)
        if told is None:
            raise
        raise told from error


def make_folder(path: str | os.PathLike) -> Path:
    """Makes a folder and those above it, where they are not there. Raises `WriteError`."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        advice = _ADVICE.get(error.errno, "give another one")
        raise WriteError(f"{path}: cannot be made a folder ({error.strerror}): {advice}.", error.errno) from error
    return path


def append(path: str | os.PathLike, content: str | bytes) -> None:
    """Appends to a file, all of it or nothing. Raises `WriteError`."""
    with writing(path), open(path, "ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        data = memoryview(content.encode() if isinstance(content, str) else content)
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            file.truncate(size)
            raise


# --- Whole or not at all: written beside the target under another name, then renamed --------------------------------


@contextmanager
def written_beside(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renames it to `path` on success, removes it on any failure. Raises
    `UserError` as `check_place` does, and a `WriteError` for whatever a failed write raises inside."""
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
    """`written_beside`, of an empty folder, by `check_folder`.

    A folder that is already at `path` is replaced as a whole: whether it may be is for the caller to know. No system
    swaps two folders in one step everywhere, so between two renames there is none; a failure there puts the old one
    back.
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
        what = "a folder" if path.is_dir() else "a device or a pipe"
        raise UserError(f"{path}: is {what}, and a file to write was expected: give a file name.")
    _check_parent(path)


def check_folder(path: Path) -> None:
    """Refuses a folder to write that is something else, the current folder, or in none. Raises `UserError`."""
    if path.exists() and not path.is_dir():
        what = "a file" if path.is_file() else "a device or a pipe"
        raise UserError(f"{path}: is {what}, and a folder to write was expected: give another name.")
    if path.resolve() == Path.cwd():
        raise UserError(f"{path}: is the current folder, which cannot be replaced: name a folder in it.")
    _check_parent(path)


def _check_parent(path: Path) -> None:
    if not path.parent.is_dir():
        raise UserError(f"{path}: its folder does not exist: make the folder {path.parent} or choose another one.")
    if not os.access(path.parent, os.W_OK | os.X_OK):  # told before the minutes that the work takes
        raise WriteError(
            f"{path}: cannot be written, as its folder {path.parent} allows no new files (no permission, or a disk "
            "that can only be read): change that, or choose another one."
        )
