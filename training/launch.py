"""Start several ranks of a program on this machine, one thread each, so that a small network uses several CPU cores.

Its operations are too small for several threads, which wait for each other after each operation; ranks wait once per
step. Ranks get the same environment variables as from torchrun, see `training.ranks.joined`.

This module imports neither torch nor other libraries that only training requires.
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
"""Environment variable of a rank that `launch`, not torchrun, has started."""
REFUSED = 2
"""Exit status of a rank after a user error. Usually all ranks report the same error."""
LOST = 75
"""Exit status of a rank that has lost another rank. The other rank reports why."""
GRACE = 15.0
"""Seconds for the other ranks to end by themselves after a rank has failed."""
_RESUME = "Run the same command again to resume from the last save."
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
"""Settings of glibc that make a process keep its memory. Otherwise the memory of large tensors returns to the system
after each operation, and the next one waits until the same pages are cleared again (an eighth of a step)."""


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class StopSignals:
    """Record SIGINT and SIGTERM instead of ending. A second SIGINT interrupts at once, unless `patient`."""

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
        if os.getpid() != self._process:  # a forked reader of samples, which inherits this handler until it starts
            return
        if self.came == number == signal.SIGINT and not self._patient:
            raise KeyboardInterrupt
        self.heard.append(number)


def launch(module: str, arguments: Sequence[str], ranks: int) -> int:
    """Run `python -m MODULE ARGUMENTS` on several ranks until all of them have ended.

    SIGINT and SIGTERM are passed on to each rank once, and each rank saves and ends. If this process is killed, the
    ranks receive a SIGTERM, see `follow_launcher`. The output of all ranks is visible, and the errors of rank 0. The
    standard error of another rank is shown only if it failed first, unless both end with a user's error.

    Returns:
        The exit status: 0, or the status of the rank that failed first (128 plus the signal's number if a signal ended
        it). The other ranks are ended after it.
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
        for rank, file in enumerate(errors):
            own = shared | dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank))
            # The terminal's Ctrl-C does not reach a rank in its own session, only this process, which passes it on.
            # Windows has no sessions: there the console sends it to all of them, and nothing is passed on.
            command, posix = [sys.executable, "-m", module, *arguments], os.name == "posix"
            process = subprocess.Popen(command, env=own, stdin=subprocess.PIPE, stderr=file, start_new_session=posix)
            started.append(process)
        failed, stopped = _wait(started, signals.heard)
        if failed is None:
            if not any(process.returncode for process in started):
                return 0
            _say(f"The ranks lost their connection to each other. {_RESUME}")
            return LOST
        status = started[failed].returncode
        reported = started[0].returncode == status == REFUSED  # by rank 0 too
        if errors[failed] is not None and not (stopped or reported):
            errors[failed].seek(0)
            sys.stderr.write(errors[failed].read().decode(errors="replace"))
        if status >= 0:
            return status
        name = signal.Signals(-status).name
        why = " (usually because memory ran out)" if name == "SIGKILL" else ""
        _say(f"Rank {failed} was ended by {name}{why}. {_RESUME}")
        return 128 - status


def follow_launcher() -> bool:
    """Send this process, a rank, a SIGTERM when the process that launched it ends for any reason.

    Returns:
        Whether `launch` started this process.
    """
    if LAUNCHED not in os.environ:
        return False

    def follow() -> None:
        while os.read(0, 1):  # nothing is ever written; the read returns when the pipe is closed
            pass
        signal.raise_signal(signal.SIGTERM)

    threading.Thread(target=follow, daemon=True).start()
    return True


def _wait(started: Sequence[subprocess.Popen], heard: list[int]) -> tuple[int | None, bool]:
    """Wait until all ranks have ended. Returns the rank that failed first, and whether a signal was passed on."""
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
