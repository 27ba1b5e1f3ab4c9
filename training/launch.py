"""Ranks of a program on this machine, one thread each: on a CPU the way to use several cores for a small network.

Its operations are too small to be shared among threads, which wait for each other after each of them; ranks wait once a
step. What torchrun says to its ranks is said here too, see `training.ranks.joined`.

Nothing of torch is imported here, nor of what training needs beyond it.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO

LAUNCHED = "VC_LAUNCHED"
"""Environment variable of a rank that `launch` has started, and not torchrun."""
REFUSED = 2
"""Exit status of a rank that has told the user what to change: mostly all ranks find the same."""
LOST = 75
"""Exit status of a rank that has lost another one: that one tells why."""
GRACE = 15.0
"""Seconds that the others have to end by themselves when a rank has failed."""
POLL = 0.05
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
"""glibc's settings by which a process keeps its memory: else large tensors go back to the system after each operation,
and the next one waits for the same pages to be cleared anew (an eighth of a step)."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def launch(module: str, arguments: Sequence[str], ranks: int) -> int:
    """Runs `python -m MODULE ARGUMENTS` on so many ranks, until all of them have ended.

    SIGINT and SIGTERM are passed on to each rank once, and each ends when it has saved. Where this process is killed,
    that is a SIGTERM for them, see `follow_launcher`. What ranks write is seen, but for the errors and warnings of the
    others beside rank 0: of them, those of one that has failed first, unless both tell of a user's error.

    Returns:
        The exit status: 0, or that of the rank that failed first (128 and the signal's number where one ended it),
        which the others are ended after.
    """
    with ExitStack() as stack:
        came = stack.enter_context(_signals_noted())
        errors = [None, *(stack.enter_context(tempfile.TemporaryFile()) for _ in range(ranks - 1))]
        port, started = _free_port(), []
        stack.callback(_end, started)
        for rank, where in enumerate(errors):
            started.append(_start(module, arguments, _environment(rank, ranks, port), where))
        failed, stopped = _wait(started, came)
        if failed is None:
            return _all_lost(started)
        status = started[failed].returncode
        told = started[0].returncode == status == REFUSED
        if errors[failed] is not None and not (stopped or told):
            errors[failed].seek(0)
            sys.stderr.write(errors[failed].read().decode(errors="replace"))
        if status < 0:
            name = signal.Signals(-status).name
            print(f"vc: rank {failed} was ended by {name}{', as where memory is short' * (name == 'SIGKILL')}; the "
                  "same command goes on from what is saved.", file=sys.stderr)  # fmt: skip
            return 128 - status
        return status


def follow_launcher() -> bool:
    """In a rank: makes the end of the process that launched it, of whatever kind, a SIGTERM to this one.

    Returns:
        Whether it was `launch` that started this process.
    """
    if LAUNCHED not in os.environ:
        return False

    def follow() -> None:
        while os.read(0, 1):  # nothing is ever written: it returns at the pipe's end
            pass
        signal.raise_signal(signal.SIGTERM)

    threading.Thread(target=follow, daemon=True).start()
    return True


def _environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    size = str(ranks)
    return {
        **_MEMORY,
        **os.environ,
        **dict.fromkeys(_THREADS, "1"),
        **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), LAUNCHED: "1"},
    }


def _start(
    module: str, arguments: Sequence[str], environment: Mapping[str, str], errors: IO[bytes] | None
) -> subprocess.Popen:
    # In a session of its own, a rank is out of reach of the terminal's Ctrl-C, which comes to this process and is
    # passed on. Windows has no sessions: there the console tells all of them, and nothing is passed on.
    return subprocess.Popen([sys.executable, "-m", module, *arguments], env=environment, stdin=subprocess.PIPE,
                            stderr=errors, start_new_session=os.name == "posix")  # fmt: skip


def _wait(started: Sequence[subprocess.Popen], came: list[int]) -> tuple[int | None, bool]:
    """Until all have ended. Returns the rank that failed first, and whether it was told to stop."""
    failed, stopped, last = None, False, float("inf")
    while True:
        running = [process for process in started if process.poll() is None]
        statuses = [process.returncode for process in started]
        if failed is None:
            failed = next((rank for rank, status in enumerate(statuses) if status not in (None, 0, LOST)), None)
        if not running:
            return failed, stopped
        if any(statuses):
            last = min(last, time.monotonic() + GRACE)
        if time.monotonic() > last:
            _end(running)
        while came:
            number, stopped = came.pop(0), True
            for process in running if os.name == "posix" else ():
                process.send_signal(number)
        time.sleep(POLL)


def _all_lost(started: Sequence[subprocess.Popen]) -> int:
    """The exit status where no rank has failed of itself."""
    if not any(process.returncode for process in started):
        return 0
    print("vc: the ranks have lost the connection to each other; the same command goes on from what is saved.",
          file=sys.stderr)  # fmt: skip
    return LOST


def _end(started: Sequence[subprocess.Popen]) -> None:
    for process in started:
        process.kill()
        process.wait()
        process.stdin.close()


@contextmanager
def _signals_noted() -> Iterator[list[int]]:
    """The numbers of SIGINT and SIGTERM as they come, which do nothing else meanwhile."""
    came: list[int] = []
    before = {n: signal.signal(n, lambda number, _: came.append(number)) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
