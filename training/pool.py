"""Work on many items in several processes, with the results in order."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from typing import Any, TypeVar

import torch

from vc_core.errors import UserError

Result = TypeVar("Result")


def in_order(
    work: Callable[[Any], Result],
    items: Iterable[Any],
    jobs: int,
    killed: str,
    ahead: int = 4,
    on_interrupt: Any = signal.SIG_IGN,
) -> Iterator[Result]:
    """Yield what `work` returns for each item, in order, computed by `jobs` processes with one thread each.

    Args:
        work: a function of a module, or a `partial` of one.
        killed: the message if a process was killed.
        ahead: maximum number of items per process that are submitted before the next result is taken.
        on_interrupt: handler of Ctrl-C, which reaches all processes. By default, the main one ends the others; SIG_DFL
            ends each in the middle of an item.

    Raises:
        UserError: one of the processes was killed.
    """
    # Not forked: the copies would lack the libraries' threads.
    pool = ProcessPoolExecutor(jobs, get_context("spawn"), _start, (on_interrupt,))
    running: deque[Future[Result]] = deque()
    try:
        for item in items:
            running.append(pool.submit(work, item))
            if len(running) > ahead * jobs:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    except BrokenProcessPool as error:
        raise UserError(killed) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start(on_interrupt: Any) -> None:
    signal.signal(signal.SIGINT, on_interrupt)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)  # one process per core; and sums are the same on every machine


def _end_with_parent() -> None:
    """End when the parent is killed; otherwise this process would wait for items forever."""
    wait([parent_process().sentinel])
    os._exit(1)
