"""Disks that cannot be written, as tests make them: without root, and on every system that has limits."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ADVICE = r"cannot be written \((File too large|No space left on device)\): "
"""What users are told of either disk."""


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes, whatever library writes it: the next write fails as on a full disk."""
    resource = pytest.importorskip("resource", reason="this system has no limits of files' sizes")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def limit_files(size: int) -> None:
    """The same for this process and those that it starts, for good."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@contextmanager
def full_disk(folder: Path, size: str) -> Iterator[Path]:
    """A real disk of so many bytes, such as `64k`, mounted at a folder; skipped where mounting is not allowed."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("a disk of its own is for root on Linux alone")
    made = subprocess.run(["mount", *options], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no disk can be mounted here: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def everything_in(folder: Path) -> list[str]:
    """All names below a folder, those that are hidden too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
