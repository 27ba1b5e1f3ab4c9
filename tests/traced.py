"""Record with strace which files and sockets a function opens."""

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
_BEGIN, _END = "/begin-of-trace", "/end-of-trace"


def _works() -> bool:
    if shutil.which("strace") is None:
        return False
    # In some containers strace is installed, but may not trace.
    return subprocess.run(["strace", "-f", "-e", "trace=openat", "true"], capture_output=True).returncode == 0


needs_strace = pytest.mark.skipif(not _works(), reason="strace is not installed, or may not trace here")


def traced(module: str, function: str, paths: list[Path], also: Iterable[Path] = (), seconds: float = 300) -> list[str]:
    """Run `function(path)` for each path. Return strace's lines for sockets, and for files other than these paths.

    The function runs once before tracing, so that the files that Python and libraries load are not among the lines.
    Exception: a function whose name ends in `openly` may wait forever; it runs once and is killed after three seconds.

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
    """Whether a line is about one of these files, or a system file (codecs read the number of processors)."""
    if "resumed>" in line and "socket" not in line:
        return True
    match = re.match(r'(?:openat\(AT_FDCWD, |open\()"([^"]*)"', line)
    return match is not None and (match[1] in own or match[1].startswith(("/proc/", "/sys/", "/dev/null")))


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
