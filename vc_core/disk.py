"""Write files and folders completely or not at all, and convert errors of the disk to messages for users."""

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
"""Error numbers of a full disk or quota."""

_ADVICE = {
    **dict.fromkeys(FULL, "Free space on its disk, then try again."),
    errno.EFBIG: "Its disk does not support files of that size. Choose another place.",
    errno.EROFS: "Its disk is read-only. Choose another place.",
    **dict.fromkeys((errno.EACCES, errno.EPERM), "Change its permissions or choose another place."),
    errno.ENAMETOOLONG: "Choose a shorter name.",
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "Close other programs or allow more open files (ulimit -n)."),
}
_OF_WRITING = (*FULL, errno.EFBIG, errno.EROFS)

# Libraries that raise their own errors instead of the system's, by the module of the error's class. torch has no class
# of its own for them.
_LIBRARIES = ("safetensors", "safetensors_rust", "av")
_OF_TORCH = re.compile(r"inline_container|PytorchStreamWriter|write\(\): fd")


class WriteError(UserError):
    """A file or folder that cannot be written. `number` is the system's error number (`errno`); None if a library does
    not report it."""

    __module__ = "vc_core"

    def __init__(self, message: str, number: int | None = None) -> None:
        super().__init__(message)
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (str(self), self.number)  # a function of this module, because __module__ is only for display


def _rebuilt(message: str, number: int | None) -> WriteError:
    return WriteError(message, number)


def write_error(error: BaseException, path: str | os.PathLike | None = None) -> WriteError | None:
    """Return the WriteError for an error that a failed write raised in any library; None for an error of another kind.
    `path` is the written path for the message; None: the path in the error."""
    text = " ".join(str(error).split())
    number, reason, named = None, text[:200] or type(error).__name__, None
    if isinstance(error, OSError):
        number, named = error.errno, error.filename
        reason = error.strerror or reason
    elif type(error).__module__.partition(".")[0] in _LIBRARIES:
        if match := re.search(r"\(os error (\d+)\)", text):  # Rust's wording
            number = int(match[1])
            reason = os.strerror(number)
    elif not (isinstance(error, RuntimeError) and _OF_TORCH.search(text)):
        return None
    if path is None and number is None:
        return None  # possibly not an error of writing
    where = path if path is not None else named if isinstance(named, str | bytes) else None
    place = "A file or the output" if where is None else os.fsdecode(where)
    what = "written" if path is not None or number in _OF_WRITING else "read or written"
    advice = _ADVICE.get(number, "Check its folder and its disk's space and health.")
    return WriteError(f"{place} cannot be {what} ({reason}). {advice}", number)


@contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Convert any error of a failed write inside to a `WriteError` that names `path`."""
    try:
        yield
    except Exception as error:
        converted = write_error(error, path)
        if converted is None:
            raise
        raise converted from error


def make_folder(path: str | os.PathLike) -> Path:
    """Create a folder and its parents if they do not exist. Raises `WriteError`."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        advice = _ADVICE.get(error.errno, "Choose another folder.")
        raise WriteError(f"The folder {path} cannot be created ({error.strerror}). {advice}", error.errno) from error
    return path


def append(path: str | os.PathLike, content: str | bytes) -> None:
    """Append all of `content` to a file, or nothing. Raises `WriteError`."""
    with writing(path), open(path, "ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        data = memoryview(content.encode() if isinstance(content, str) else content)
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            file.truncate(size)
            raise


# --- Complete or not at all: written next to the target under another name, then renamed -----------------------------


@contextmanager
def written_beside(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to `path` on success, remove it on any failure. Raises
    `UserError` as `check_place` does, and `WriteError` for a failed write inside."""
    path = Path(path)
    with writing(path):
        check_place(path)
        temporary = path.with_name(f".{path.stem}.{_unique()}{path.suffix}")
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            with suppress(OSError):  # it does not exist, or the disk is read-only, which was already reported
                temporary.unlink()


@contextmanager
def folder_beside(path: str | os.PathLike) -> Iterator[Path]:
    """Do the same as `written_beside` for a new empty folder, after `check_folder`.

    An existing folder at `path` is replaced completely; the caller decides whether that is allowed. No call swaps two
    folders atomically on all systems, so between two renames there is no folder at `path`; if the second rename fails,
    the old folder is restored.
    """
    path = Path(path).resolve()  # replace the target of a symbolic link
    with writing(path):
        check_folder(path)
        unique = _unique()
        new, old = (path.with_name(f".{path.name}.{unique}.{what}") for what in ("new", "old"))
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


def _unique() -> str:
    """Return a unique name for this write: in containers that share a disk, all processes may have the same number."""
    return f"{os.getpid()}-{secrets.token_hex(4)}"


def check_place(path: Path) -> None:
    """Raise `UserError` if a file to write is a folder, a device or a pipe, or if its folder does not exist."""
    if path.exists() and not path.is_file():  # writing would replace a device by a file, for all users
        what = "a folder" if path.is_dir() else "a device or a pipe"
        raise UserError(f"Expected a file to write, but {path} is {what}. Pass a file name.")
    _check_parent(path)


def check_folder(path: Path) -> None:
    """Raise `UserError` if a folder to write is not a folder, is the current folder, or has no existing parent."""
    if path.exists() and not path.is_dir():
        what = "a file" if path.is_file() else "a device or a pipe"
        raise UserError(f"Expected a folder to write, but {path} is {what}. Choose another name.")
    if path.resolve() == Path.cwd():
        raise UserError(f"{path} is the current folder, which cannot be replaced. Pass a folder inside it.")
    _check_parent(path)


def _check_parent(path: Path) -> None:
    if not path.parent.is_dir():
        raise UserError(
            f"{path} cannot be written because its folder does not exist. Create the folder {path.parent} or choose "
            "another one."
        )
    if not os.access(path.parent, os.W_OK | os.X_OK):  # fail early, before minutes of work
        raise WriteError(
            f"{path} cannot be written because its folder {path.parent} allows no new files (no permission, or a "
            "read-only disk). Change that or choose another folder."
        )
