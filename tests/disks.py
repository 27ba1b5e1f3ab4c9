"""Simulate disks that cannot be written, without root, on every system with file size limits."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ADVICE = r"cannot be written \((File too large|No space left on device)\)\. "
"""The beginning of the message for either disk."""


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Limit all files to `size` bytes, whatever library writes them: the next write fails as on a full disk."""
    resource = pytest.importorskip("resource", reason="this system has no limits for file sizes")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def limit_files(size: int) -> None:
    """Set the same limit permanently for this process and those it starts."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@contextmanager
def full_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a real disk of a size such as `64k` at a folder; skip the test if mounting is not allowed."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("mounting a disk requires root on Linux")
    result = subprocess.run(["mount", *options], capture_output=True, text=True)
    if result.returncode:
        pytest.skip(f"no disk can be mounted here: {result.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def everything_in(folder: Path) -> list[str]:
    """All names below a folder, including hidden ones."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
