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
from collections.abc import Sequence
from contextlib import ExitStack

LAUNCHED = "VC_LAUNCHED"
"""Environment variable of a rank that `launch` has started, and not torchrun."""
REFUSED = 2
"""Exit status of a rank that has told the user what to change: mostly all ranks find the same."""
LOST = 75
"""Exit status of a rank that has lost another one: that one tells why."""
GRACE = 15.0
"""Seconds that the others have to end by themselves when a rank has failed."""
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
"""glibc's settings by which a process keeps its memory: else large tensors go back to the system after each operation,
and the next one waits for the same pages to be cleared anew (an eighth of a step)."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class StopSignals:
    """Notes SIGINT and SIGTERM instead of dying of them; a second SIGINT interrupts at once, unless `patient`."""

    def __init__(self, patient: bool = False) -> None:
        self.heard: list[int] = []
        self._patient, self._process = patient, os.getpid()

    @property
    def came(self) -> int:
        """The last signal's number, or 0."""
        return self.heard[-1] if self.heard else 0

    def __enter__(self) -> StopSignals:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        if os.getpid() != self._process:  # one that reads samples, and has inherited this until it begins
            return
        if self.came == number == signal.SIGINT and not self._patient:
            raise KeyboardInterrupt
        self.heard.append(number)


def launch(module: str, arguments: Sequence[str], ranks: int) -> int:
    """Runs `python -m MODULE ARGUMENTS` on so many ranks, until all of them have ended.

    SIGINT and SIGTERM are passed on to each rank once, and each ends when it has saved. Where this process is killed,
    that is a SIGTERM for them, see `follow_launcher`. What ranks write is seen, but for the errors and warnings of the
    others beside rank 0: of them, those of one that has failed first, unless both tell of a user's error.

    Returns:
        The exit status: 0, or that of the rank that failed first (128 and the signal's number where one ended it),
        which the others are ended after.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    shared = {
        **{**_MEMORY, **os.environ, **dict.fromkeys(_THREADS, "1"), LAUNCHED: "1"},
        **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(ranks)),
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
    }
    with ExitStack() as stack:
        signals = stack.enter_context(StopSignals(patient=True))
        errors = [None, *(stack.enter_context(tempfile.TemporaryFile()) for _ in range(ranks - 1))]
        started: list[subprocess.Popen] = []
        stack.callback(_end, started)
        for rank, where in enumerate(errors):
            own = shared | dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank))
            # In a session of its own, a rank is out of reach of the terminal's Ctrl-C, which comes to this process and
            # is passed on. Windows has no sessions: there the console tells all of them, and nothing is passed on.
            command, apart = [sys.executable, "-m", module, *arguments], os.name == "posix"
            process = subprocess.Popen(command, env=own, stdin=subprocess.PIPE, stderr=where, start_new_session=apart)
            started.append(process)
        failed, stopped = _wait(started, signals.heard)
        if failed is None:
            if not any(process.returncode for process in started):
                return 0
            _say("the ranks have lost the connection to each other; the same command goes on from what is saved.")
            return LOST
        status = started[failed].returncode
        told = started[0].returncode == status == REFUSED
        if errors[failed] is not None and not (stopped or told):
            errors[failed].seek(0)
            sys.stderr.write(errors[failed].read().decode(errors="replace"))
        if status >= 0:
            return status
        name = signal.Signals(-status).name
        why = ", as where memory is short" if name == "SIGKILL" else ""
        _say(f"rank {failed} was ended by {name}{why}; the same command goes on from what is saved.")
        return 128 - status


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


def _wait(started: Sequence[subprocess.Popen], heard: list[int]) -> tuple[int | None, bool]:
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
        while heard:
            number, stopped = heard.pop(0), True
            for process in running if os.name == "posix" else ():
                process.send_signal(number)
        time.sleep(0.05)


def _end(started: Sequence[subprocess.Popen]) -> None:
    for process in started:
        process.kill()
        process.wait()
        process.stdin.close()


def _say(text: str) -> None:
    print(f"vc: {text}", file=sys.stderr)
