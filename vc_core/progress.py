"""Progress reports of long work."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Progress = Callable[[str, int, int], None]
"""`progress(what, done, total)`, e.g. `progress("sampling", 3, 20)`. An exception that it raises ends the work."""

_Item = TypeVar("_Item")


def reported(what: str, items: Sequence[_Item], progress: Progress | None) -> Iterator[_Item]:
    """Yield the items of a loop and report progress after each one."""
    for number, item in enumerate(items):
        yield item
        if progress is not None:
            progress(what, number + 1, len(items))
