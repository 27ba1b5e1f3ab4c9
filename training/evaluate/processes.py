"""Composes in several processes with one thread each.

On a CPU this is faster than as many threads in one process, which wait for each other whenever other programs run too.
Figures do not depend on the number of processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training.evaluate.trials import Run, Task
from training.pool import in_order
from vc_core.composer import VideoComposer
from vc_core.progress import Progress

AHEAD = 2
"""Maximum number of waiting tasks per process, because each task keeps its conditions in memory."""


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Make torch use one thread on a CPU, because the work is divided among processes."""
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

    work = partial(_compose, path=path, parts=tuple(parts), lora=lora, device=device)
    killed = (
        f"One of the {jobs} processes that compose was killed, probably because memory ran out. Use fewer --jobs or a "
        "smaller --batch."
    )

    def run(tasks: Iterable[Task], progress: Progress | None) -> Iterator[Tensor]:
        with closing(in_order(work, tasks, jobs, killed, AHEAD)) as results:
            for videos in results:
                if progress is not None:
                    progress("sampling", 1, 1)
                yield torch.from_numpy(videos)

    return run


def load_composer(path: Path, parts: tuple[Path, ...], lora: Path | None, device: str) -> VideoComposer:
    """Load a checkpoint, with a LoRA at strength 1 if there is one."""
    return VideoComposer.load(path, parts, loras={} if lora is None else {lora: 1.0}, device=device)


_composer = cache(load_composer)


def _compose(task: Task, *, path: Path, parts: tuple[Path, ...], lora: Path | None, device: str) -> np.ndarray:
    return task.compose(_composer(path, parts, lora, device)).numpy()
