"""Which files and sockets a function opens, by strace."""

import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
_BEGIN, _END = "/begin-of-what-is-traced", "/end-of-what-is-traced"


def _works() -> bool:
    if shutil.which("strace") is None:
        return False
    # In some containers it is there and may not trace.
    return subprocess.run(["strace", "-f", "-e", "trace=openat", "true"], capture_output=True).returncode == 0


needs_strace = pytest.mark.skipif(not _works(), reason="strace is missing, or may not trace here")


def traced(module: str, function: str, paths: list[Path], also: Iterable[Path] = (), seconds: float = 300) -> list[str]:
    """The lines of strace for sockets, and for files other than the given ones, while `function(path)` runs of each.

    It runs once before, so that what Python and the libraries load for it is not among them; but for a function whose
    name ends in `openly`, which may wait for what never comes and is killed after three seconds.

    Args:
        also: further files that may be opened.
    """
    log = paths[0].with_name("strace.log")
    watched = ["strace", "-f", "-qq", "-e", "signal=none", "-e", "trace=network,openat,openat2,creat", "-s", "4096"]
    program = [sys.executable, "-m", "tests.traced", module, function]
    done = subprocess.run(
        [*watched, "-o", str(log), *program, *map(str, paths)],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        timeout=seconds,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0 or function.endswith("openly"), done.stdout
    lines = [line.partition(" ")[2].lstrip() for line in log.read_text(errors="replace").splitlines()]
    begin, end = (next((n for n, line in enumerate(lines) if mark in line), len(lines)) for mark in (_BEGIN, _END))
    assert begin < len(lines), done.stdout
    own = {str(path) for path in (*paths, *also)}
    return [line for line in lines[begin + 1 : end] if not _is_own(line, own)]


def _is_own(line: str, own: set[str]) -> bool:
    """Whether a line is of a given file, or of the system's, of which codecs read the number of processors."""
    if "resumed>" in line and "socket" not in line:
        return True
    opened = re.match(r'(?:openat\(AT_FDCWD, |open\()"([^"]*)"', line)
    return opened is not None and (opened[1] in own or opened[1].startswith(("/proc/", "/sys/", "/dev/null")))


def main() -> None:
    module, function, *names = sys.argv[1:]
    work = getattr(importlib.import_module(module), function)
    for name in [] if function.endswith("openly") else names:
        work(Path(name))
    signal.alarm(3 if function.endswith("openly") else 0)
    _mark(_BEGIN)
    for name in names:
        work(Path(name))
    _mark(_END)


def _mark(name: str) -> None:
    with suppress(OSError):
        os.close(os.open(name, os.O_RDONLY))


if __name__ == "__main__":
    main()
