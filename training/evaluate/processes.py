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
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training.evaluate.trials import Task
from training.launch import cores
from vc_core.composer import VideoComposer
from vc_core.errors import UserError
from vc_core.progress import Progress

DEFAULT = 2
AHEAD = 2
"""Tasks that wait for each process at most: each holds its conditions."""


def jobs_on(device: torch.device, wanted: int | None) -> int:
    """How many processes compose on a device: as many as are wanted, else two on a CPU, where there are as many."""
    if wanted is not None:
        return wanted
    return min(DEFAULT, cores()) if device.type == "cpu" else 1


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


class _Worker:
    """What a process keeps from one task to the next."""

    composer: VideoComposer

    @classmethod
    def start(cls, path: Path, parts: Sequence[Path], device: str) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first process ends the others
        threading.Thread(target=_end_with_parent, daemon=True).start()
        torch.set_num_threads(1)
        cls.composer = VideoComposer.load(path, parts, device=device)

    @classmethod
    def compose(cls, task: Task) -> np.ndarray:
        return task.compose(cls.composer).numpy()


def _end_with_parent() -> None:
    """A process whose parent was killed would wait for tasks for ever."""
    wait([parent_process().sentinel])
    os._exit(1)


class Processes:
    """Composes in so many processes, each with a composer of its own; see `training.evaluate.trials.Run`."""

    def __init__(self, path: Path, parts: Sequence[Path], device: str, jobs: int) -> None:
        self.start, self.jobs = (path, tuple(parts), device), jobs

    def __call__(self, tasks: Iterable[Task], progress: Progress | None = None) -> Iterator[Tensor]:
        """The videos of each task, in their order.

        Raises:
            UserError: one of the processes was killed.
        """
        # Not forked: torch's threads would be missing in the copies.
        pool = ProcessPoolExecutor(self.jobs, get_context("spawn"), _Worker.start, self.start)
        running: deque[Future[np.ndarray]] = deque()

        def next_one() -> Tensor:
            made = torch.from_numpy(running.popleft().result())
            if progress is not None:
                progress("sampling", 1, 1)
            return made

        try:
            for task in tasks:
                running.append(pool.submit(_Worker.compose, task))
                if len(running) > AHEAD * self.jobs:
                    yield next_one()
            while running:
                yield next_one()
        except BrokenProcessPool as error:
            raise UserError(
                f"One of the {self.jobs} processes that compose was killed, as a rule for want of memory: give fewer "
                "--jobs or a smaller --batch."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
