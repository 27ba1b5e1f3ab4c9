"""What every program of the project does on a terminal: an exit status, a sentence for an error, progress bars."""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .errors import UserError

USERS_ERROR, INTERRUPTED = 2, 130


def run_program(work: Callable[[], int | None], interrupted: str = "interrupted", debug: bool = False) -> int:
    """Does a program's work and returns its exit status: 2 for what the user can mend, 130 for Ctrl-C, else its own.

    Warnings and those errors become sentences on standard error. Our own mistakes rise.

    Args:
        interrupted: what is said after Ctrl-C.
        debug: let users' errors rise too.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"vc: {message}", file=sys.stderr)
            return work() or 0
    except KeyboardInterrupt:
        print(f"vc: {interrupted}", file=sys.stderr)
        return INTERRUPTED
    except UserError as error:
        if debug:
            raise
        print(f"vc: {error}", file=sys.stderr)
        return USERS_ERROR


class Bars:
    """A progress bar for each thing that reports, shown only where it takes more than half a second."""

    def __init__(self) -> None:
        self.bars: dict[str, Any] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        from tqdm import tqdm

        bar = self.bars.get(what)
        if bar is None or done < bar.n or bar.total != total:  # it begins anew
            self.finish()
            bar = self.bars[what] = tqdm(desc=what, total=total, delay=0.5, dynamic_ncols=True)
        bar.update(done - bar.n)

    def finish(self) -> None:
        while self.bars:
            self.bars.popitem()[1].close()

    def write(self, line: str) -> None:
        """A line on standard output, where no bar is under way."""
        self.finish()
        print(line, flush=True)


@contextmanager
def progress_bars() -> Iterator[Bars]:
    bars = Bars()
    try:
        yield bars
    finally:
        bars.finish()
