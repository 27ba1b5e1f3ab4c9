"""What a disk answers where it cannot be written, as one sentence: the one place that tells it."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
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
_OTHERWISE = "check its folder, and its disk's space and health"

# Libraries whose own errors stand for the system's where they write, by the module of the error's class; torch has none
# of its own for it.
_LIBRARIES = ("safetensors", "safetensors_rust", "av")
_OF_TORCH = re.compile(r"inline_container|PytorchStreamWriter|write\(\): fd")


class WriteError(UserError):
    """A file or folder that cannot be written.

    Attributes:
        number: the system's number of the error (`errno`); None where a library does not tell it.
    """

    __module__ = "vc_core"

    def __init__(self, sentence: str, number: int | None = None) -> None:
        super().__init__(sentence)
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (str(self), self.number)  # by its home, since its module is only what is shown


def _again(sentence: str, number: int | None) -> WriteError:
    return WriteError(sentence, number)


def write_error(error: BaseException, path: str | os.PathLike | None = None) -> WriteError | None:
    """The sentence for what a failed write has raised, in whatever library; None for an error of another kind.

    Args:
        path: what was to be written, and for users to know; None: what the error names.
    """
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
    return WriteError(f"{place}: cannot be {what} ({reason}): {_ADVICE.get(number, _OTHERWISE)}.", number)


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


def append(path: str | os.PathLike, text: str) -> None:
    """Appends to a text file, all of it or nothing. Raises `WriteError`."""
    with writing(path), open(path, "ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        data = memoryview(text.encode())
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            file.truncate(size)
            raise
