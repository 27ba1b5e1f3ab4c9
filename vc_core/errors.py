"""The one exception that speaks to users, and words for it."""

import os
import re
import reprlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

LINE = 80
"""Characters of a value that an error shows."""

_MESSAGE = 4000  # characters, far more than any sentence of ours has: what slips in unshortened still fits a screen


class UserError(Exception):
    """An error that the user can fix.

    Its message names the file, socket or key, says what was expected and what was found, and what to do, in one to
    three short sentences. The command line prints it without a traceback and exits with status 2; a ComfyUI node shows
    it unchanged.
    """

    # What programs show of it: its public place, not that of the folder it was imported from.
    __module__ = "vc_core"

    def __init__(self, message: object = ""):
        text = _visible(str(message))
        super().__init__(text if len(text) <= _MESSAGE else f"{text[: _MESSAGE - 500]} ... {text[-450:]}")


@contextmanager
def about(path: str | os.PathLike, part: str = "") -> Iterator[None]:
    """Put a file's name, and the part of it, in front of every `UserError` raised inside that does not name them yet."""
    prefix = f"{path}{part and ', ' + part}"
    try:
        yield
    except UserError as error:
        if prefix in str(error):
            raise
        raise UserError(f"{prefix}: {error}") from error


def counted(number: int, one: str, many: str = "") -> str:
    """A number with its noun: `1 image`, `3 images`. `many` is the plural where it is not the singular with an s."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def amount(size: int) -> str:
    """So many bytes: `5.7 GB`, `335 MB`, `787 bytes`."""
    if size < 1e6:
        return counted(size, "byte")
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def shorten(items: Collection[str], most: int = 5) -> str:
    """The first items of a list, and how many more there are: `a, b, c and 4 more`."""
    items = list(items)
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def brief(text: str, most: int = LINE) -> str:
    """A text of a file as an error shows it: in one line of at most `most` characters, all of them visible."""
    line = _visible(text[: most + 1]).replace("\n", "\\n")  # of a text that may be as long as its file
    return line if len(text) <= most and len(line) <= most else f"{line[: most - 3]}..."


def shown(value: Any) -> str:
    """A value of a file as an error shows it, in at most `LINE` characters. What is longer is never spelled out: YAML
    says in a few hundred bytes what fills all memory when written out."""
    return brief(_SHORT.repr(value))


def spelled(value: Any, between: str = " ") -> str:
    """As `shown`, but texts without quotes, and a list as its items with `between` between them."""
    if isinstance(value, (list, tuple)):
        return brief(between.join(brief(one) if isinstance(one, str) else shown(one) for one in value[:LINE]))
    return brief(value) if isinstance(value, str) else shown(value)


def reason(error: BaseException, named: bool = False) -> str:
    """What a library's error says, in one line; with the name of its kind in front where some say next to nothing."""
    said, name = " ".join(str(error)[:400].split()), type(error).__name__
    return brief(f"{name} {said}".rstrip() if named else said or name, 200)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python's or torch's says that memory was wanting; torch has no kind of its own for all."""
    said = r"out of memory|(can't|not) allocate|not enough memory|STATUS_ALLOC_FAILED"
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(re.search(said, str(error))))


def _visible(text: str) -> str:
    """A text without what terminals obey, such as a file's name may hold, and without what no encoding has."""
    obeyed = r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]"
    return re.sub(obeyed, lambda found: repr(found[0])[1:-1], text)


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = LINE
        self.maxlong = 40

    def repr_int(self, x: int, level: int) -> str:
        return super().repr_int(x, level) if x.bit_length() < 10_000 else f"an int of {x.bit_length()} bits"

    def repr_dict(self, x: dict, level: int) -> str:
        """In the order of the file, and not sorted."""
        if level <= 0:
            return "{...}" if x else "{}"
        pairs = [f"{self.repr1(k, level - 1)}: {self.repr1(v, level - 1)}" for k, v in islice(x.items(), self.maxdict)]
        return f"{{{', '.join(pairs + ['...'] * (len(x) > self.maxdict))}}}"

    def repr_instance(self, x: Any, level: int) -> str:
        return brief(super().repr_instance(x, level), self.maxother)


_SHORT = _Short()
