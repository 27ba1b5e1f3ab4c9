"""Generators that run beside each other and whose items come out in order."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

BUDGET = 2**23
"""Bytes of results that may lie ready while earlier ones are still being made."""

BATCH = 32
"""Small items are handed over so many at a time: waking another thread costs as much as making some."""

END = object()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(tasks: Sequence[Callable[[], Iterator[tuple[Any, int]]]], workers: int, budget: int = BUDGET) -> Iterator:
    """The items of generators that run in so many threads, in the order of the generators.

    Without threads, or for one generator, they run in the caller's. They yield (item, its bytes); all but the first
    unfinished one wait while `budget` bytes lie ready. What one raises is raised here, when its turn comes.
    """
    if workers < 1 or len(tasks) < 2:
        for task in tasks:
            for item, _ in task():
                yield item
        return
    ready: list[deque] = [deque() for _ in tasks]
    upcoming = iter(range(len(tasks)))
    changed = threading.Condition()
    held, current, stopped = 0, 0, False

    def put(number: int, entry: tuple[list, int, object]) -> bool:
        nonlocal held
        with changed:
            changed.wait_for(lambda: stopped or held < budget or (number == current and not ready[number]))
            if not stopped:
                held += entry[1]
                ready[number].append(entry)
                changed.notify_all()
            return not stopped

    def work() -> None:
        while True:
            with changed:
                number = None if stopped else next(upcoming, None)
            if number is None:
                return
            ending: BaseException | None = None
            items = tasks[number]()
            batch: list = []
            weight = 0
            try:
                for item, size in items:
                    batch.append(item)
                    weight += size
                    if weight * 16 >= budget or len(batch) == BATCH:
                        if not put(number, (batch, weight, None)):
                            return
                        batch, weight = [], 0
            except BaseException as error:  # told where its turn comes, not lost with the thread
                ending = error
            finally:
                items.close()
            put(number, (batch, weight, ending or END))

    threads = [threading.Thread(target=work, name=f"decoding-{n}", daemon=True) for n in range(workers)]
    for thread in threads:
        thread.start()
    try:
        for number in range(len(tasks)):
            with changed:
                current = number
                changed.notify_all()
            while True:
                with changed:
                    changed.wait_for(lambda queue=ready[number]: queue)
                    batch, weight, ending = ready[number].popleft()
                    held -= weight
                    changed.notify_all()
                yield from batch
                if isinstance(ending, BaseException):
                    raise ending
                if ending is END:
                    break
    finally:
        with changed:
            stopped = True
            changed.notify_all()
        for thread in threads:
            thread.join()
