"""`UserError`, the exception whose text users read, and functions that format parts of such texts."""

import difflib
import os
import re
import reprlib
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from numbers import Number
from types import NoneType
from typing import Any

LINE = 80
"""Maximum number of characters of a value in an error message."""

_MESSAGE = 4000  # characters, far more than our sentences need: even with an unshortened value it fits a screen


class UserError(Exception):
    """An error that the user can fix.

    In one to three short sentences, the message names the file, socket or key, says what was expected and what was
    found, and what to do. The command line prints it without a traceback and exits with status 2. A ComfyUI node shows
    it unchanged.
    """

    # Tracebacks show the public module name, not the folder that the package was imported from.
    __module__ = "vc_core"

    def __init__(self, message: object = ""):
        text = _visible(str(message))
        super().__init__(text if len(text) <= _MESSAGE else f"{text[: _MESSAGE - 500]} ... {text[-450:]}")


def _names(message: str, path: str) -> bool:
    """Whether a message names a path. A bare word such as `out` counts only at the start: it is also in "output"."""
    inside = rf"(?<![\w./\\-]){re.escape(path)}(?![\w/\\-]|\.\w)"
    return message.startswith(path) or bool(re.search(r"[./\\]", path) and re.search(inside, message))


@contextmanager
def about(path: str | os.PathLike, part: str = "") -> Iterator[None]:
    """Put a file's path, and a part of the file, in front of each `UserError` raised inside that does not name them."""
    prefix = f"{path}{part and ', ' + part}"
    try:
        yield
    except UserError as error:
        if _names(str(error), prefix):
            raise
        raise UserError(f"{prefix}: {error}") from error


def counted(number: int, singular: str, plural: str = "") -> str:
    """A number with its noun: `1 image`, `3 images`. Pass `plural` if it is not the singular with an s."""
    return f"{number} {singular if number == 1 else plural or f'{singular}s'}"


def amount(size: int) -> str:
    """A number of bytes with its unit: `5.7 GB`, `335 MB`, `787 bytes`."""
    if size < 1e6:
        return counted(size, "byte")
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def shorten(items: Collection[str], most: int = 5) -> str:
    """The first items of a list, and the number of further ones: `a, b, c and 4 more`."""
    items = list(items)
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def brief(text: str, most: int = LINE) -> str:
    """A text from a file, for an error message: one line of at most `most` visible characters."""
    line = _visible(text[: most + 1]).replace("\n", "\\n")  # the text may be as long as its file: cut it first
    return line if len(text) <= most and len(line) <= most else f"{line[: most - 3]}..."


def shown(value: Any) -> str:
    """A value from a file, for an error message, in at most `LINE` characters. A longer value is never written out in
    full: a few hundred bytes of YAML can expand to a text that fills all memory."""
    return brief(_SHORT.repr(value))


def spelled(value: Any, between: str = " ") -> str:
    """Like `shown`, but strings have no quotes, and a list becomes its items, joined by `between`."""
    if isinstance(value, (list, tuple)):
        return brief(between.join(brief(item) if isinstance(item, str) else shown(item) for item in value[:LINE]))
    return brief(value) if isinstance(value, str) else shown(value)


def check_type(name: str, value: Any, kind: Any, expected: str) -> None:
    """Raise `UserError` if an argument is not of a type; `expected` ends the sentence "Expected ..."."""
    if not isinstance(value, kind):
        text = shown(value) if isinstance(value, (str, Number, NoneType)) else f"of the type {type(value).__name__}"
        raise UserError(f"{name} is {text}. Expected {expected}.")


def nearest(word: Any, names: Iterable[str], form: str = "'{}'") -> str:
    """Suggest the most similar name, with a space in front; empty if none is similar. `form` says how to write it."""
    close = difflib.get_close_matches(spelled(word), list(names), n=1, cutoff=0.7)
    return f" Did you mean {form.format(close[0])}?" if close else ""


def reason(error: BaseException, named: bool = False) -> str:
    """The message of a library's error in one line. `named` adds the name of the error's class, because the messages of
    some libraries are too short."""
    message, name = " ".join(str(error)[:400].split()), type(error).__name__
    return brief(f"{name} {message}".rstrip() if named else message or name, 200)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python or torch means that memory ran out. Torch has no class for it."""
    pattern = r"out of memory|(can't|not) allocate|not enough memory|STATUS_ALLOC_FAILED"
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(re.search(pattern, str(error))))


def _visible(text: str) -> str:
    """A text with escapes for characters that terminals execute (a file's name may contain them) or cannot encode."""
    unsafe = r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]"
    return re.sub(unsafe, lambda match: repr(match[0])[1:-1], text)


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = LINE
        self.maxlong = 40

    def repr_int(self, x: int, level: int) -> str:
        return super().repr_int(x, level) if x.bit_length() < 10_000 else f"an int of {x.bit_length()} bits"

    def repr_dict(self, x: dict, level: int) -> str:
        """Keep the order of the file instead of sorting."""
        if level <= 0:
            return "{...}" if x else "{}"
        pairs = [f"{self.repr1(k, level - 1)}: {self.repr1(v, level - 1)}" for k, v in islice(x.items(), self.maxdict)]
        return f"{{{', '.join(pairs + ['...'] * (len(x) > self.maxdict))}}}"

    def repr_instance(self, x: Any, level: int) -> str:
        return brief(super().repr_instance(x, level), self.maxother)


_SHORT = _Short()
