"""What every program of the project does on a terminal: an exit status, a sentence for an error, progress bars."""

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from .disk import WriteError, write_error
from .errors import UserError

USERS_ERROR, INTERRUPTED, UNHEARD = 2, 130, 141


def run_program(work: Callable[[], int | None], interrupted: str = "interrupted", debug: bool = False) -> int:
    """Does a program's work and returns its exit status: 2 for what the user can mend, 130 for Ctrl-C, 141 where nobody
    reads its output any more, else its own.

    Warnings and those errors, a disk's among them, become sentences on standard error. Our own mistakes rise.

    Args:
        interrupted: what is said after Ctrl-C.
        debug: let users' errors rise too.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"vc: {message}", file=sys.stderr)
            status = work() or 0
            _flush()
            return status
    except BrokenPipeError:  # `head` has seen enough
        _mute()
        return UNHEARD
    except KeyboardInterrupt:
        print(f"vc: {interrupted}", file=sys.stderr)
        return INTERRUPTED
    except UserError as error:
        if debug:
            raise
        print(f"vc: {error}", file=sys.stderr)
        return USERS_ERROR
    except Exception as error:
        told = None if debug else write_error(error)
        if told is None:
            raise
        with suppress(WriteError):
            _flush()
        print(f"vc: {told}", file=sys.stderr)
        return USERS_ERROR


def _flush() -> None:
    """What was printed goes out while there is still somebody to tell of it."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _mute()
        raise write_error(error, "the standard output") from error


def _mute() -> None:
    """Standard output that has failed is left alone: Python would try again at its end, and complain."""
    with suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


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
