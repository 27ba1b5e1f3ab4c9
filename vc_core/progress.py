"""How long things report where they are."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Progress = Callable[[str, int, int], None]
"""`progress(what, done, total)`, for instance `progress("sampling", 3, 20)`; what it raises ends the work."""

_Item = TypeVar("_Item")


def reported(what: str, items: Sequence[_Item], progress: Progress | None) -> Iterator[_Item]:
    """The items of a loop, each of which is told of when it is done."""
    for number, item in enumerate(items):
        yield item
        if progress is not None:
            progress(what, number + 1, len(items))
