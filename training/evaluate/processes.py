"""Composes in several processes with one thread each.

On a CPU this is faster than as many threads in one process, which wait for each other whenever other programs run too.
Figures do not depend on the number of processes.
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
"""Maximum number of waiting tasks per process, because each task keeps its conditions in memory."""


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """On a CPU, make torch use one thread, because the work is divided among processes."""
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_in_processes(path: Path, parts: Sequence[Path], device: str, jobs: int, lora: Path | None = None) -> Run:
    """Return a function that composes in `jobs` processes, each with its own composer. It raises `UserError` if a
    process is killed."""

    def run(tasks: Iterable[Task], progress: Progress | None) -> Iterator[Tensor]:
        # Do not fork: torch's threads would be missing in the copies.
        pool = ProcessPoolExecutor(jobs, get_context("spawn"), _begin)
        running: deque[Future[np.ndarray]] = deque()

        def next_result() -> Tensor:
            videos = torch.from_numpy(running.popleft().result())
            if progress is not None:
                progress("sampling", 1, 1)
            return videos

        try:
            for task in tasks:
                running.append(pool.submit(_compose, task, path, tuple(parts), lora, device))
                if len(running) > AHEAD * jobs:
                    yield next_result()
            while running:
                yield next_result()
        except BrokenProcessPool as error:
            raise UserError(
                f"One of the {jobs} processes that compose was killed, probably because memory ran out. Use fewer "
                "--jobs or a smaller --batch."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)

    return run


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the main process ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)


def _end_with_parent() -> None:
    """End this process if its parent was killed. It would wait for tasks forever."""
    wait([parent_process().sentinel])
    os._exit(1)


def load_composer(path: Path, parts: tuple[Path, ...], lora: Path | None, device: str) -> VideoComposer:
    """Load a checkpoint, with a LoRA at strength 1 if there is one."""
    return VideoComposer.load(path, parts, loras={} if lora is None else {lora: 1.0}, device=device)


_composer = cache(load_composer)


def _compose(task: Task, path: Path, parts: tuple[Path, ...], lora: Path | None, device: str) -> np.ndarray:
    return task.compose(_composer(path, parts, lora, device)).numpy()
