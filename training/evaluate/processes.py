"""Composing in several processes of one thread each.

On a CPU these take less time than as many threads in one process, which wait for each other wherever anything else
runs beside them; and figures do not depend on how many there are.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training.evaluate.trials import Run, Task
from vc_core.composer import VideoComposer
from vc_core.errors import UserError
from vc_core.progress import Progress

AHEAD = 2
"""Tasks that wait for each process at most: each holds its conditions."""


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """torch computes in one thread, where it does so on a CPU: as many processes as are wanted do."""
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_in_processes(path: Path, parts: Sequence[Path], device: str, jobs: int) -> Run:
    """Composes in so many processes, each with a composer of its own. Raises `UserError` where one is killed."""

    def run(tasks: Iterable[Task], progress: Progress | None) -> Iterator[Tensor]:
        # Not forked: torch's threads would be missing in the copies.
        pool = ProcessPoolExecutor(jobs, get_context("spawn"), _begin)
        running: deque[Future[np.ndarray]] = deque()

        def next_one() -> Tensor:
            made = torch.from_numpy(running.popleft().result())
            if progress is not None:
                progress("sampling", 1, 1)
            return made

        try:
            for task in tasks:
                running.append(pool.submit(_compose, task, path, tuple(parts), device))
                if len(running) > AHEAD * jobs:
                    yield next_one()
            while running:
                yield next_one()
        except BrokenProcessPool as error:
            raise UserError(
                f"One of the {jobs} processes that compose was killed, as a rule for want of memory: give fewer "
                "--jobs or a smaller --batch."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)

    return run


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first process ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)


def _end_with_parent() -> None:
    """A process whose parent was killed would wait for tasks for ever."""
    wait([parent_process().sentinel])
    os._exit(1)


_composer = cache(VideoComposer.load)


def _compose(task: Task, path: Path, parts: tuple[Path, ...], device: str) -> np.ndarray:
    return task.compose(_composer(path, parts, device=device)).numpy()
