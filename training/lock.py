"""Locks on folders, so that one process at a time works in them. A second process learns who has the lock."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from training.launch import LOST
from training.ranks import World
from vc_core.disk import writing
from vc_core.errors import UserError
from vc_core.parsing import parse_json

FILE = ".lock"
"""In the locked folder. After its first byte, which Windows hides while the file is locked, it names the process. The
file stays afterwards; the operating system releases the lock when the process ends, however it ends."""


@contextmanager
def locked(folder: Path, work: str) -> Iterator[None]:
    """Lock an existing folder during some work.

    Args:
        work: name of the work, for messages of other processes.

    Raises:
        UserError: another process has the lock, or no lock can be created there.
    """
    from filelock import FileLock, Timeout

    path = Path(folder) / FILE
    holder = _holder(path)
    lock = FileLock(path)
    with writing(folder):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError(f"{folder} is in use by {holder}. Wait until it ends, or choose another folder.") from None
    try:
        with writing(folder):
            _sign(path, json.dumps({"work": work, "process": os.getpid(), "host": socket.gethostname()}))
        yield
    finally:
        with suppress(OSError):
            _sign(path, "")
        lock.release()


@contextmanager
def locked_by_main(world: World, folder: Path, work: str) -> Iterator[None]:
    """As `locked`, for the processes of a run. All of them call it; the main process has the lock.

    Raises:
        UserError: on the main process, see `locked`.
        SystemExit: on the others, for the same reasons.
    """
    refused = None
    with ExitStack() as stack:
        try:
            if world.main:
                stack.enter_context(locked(folder, work))
        except UserError as error:
            refused = error
        if world.most(int(refused is not None)):
            raise refused or SystemExit(LOST)
        yield


def _sign(path: Path, text: str) -> None:
    with open(path, "r+b", buffering=0) as file:
        file.truncate(1)
        file.seek(1)
        file.write(text.encode())


def _holder(path: Path) -> str:
    """The holder of a lock, according to its file."""
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(1)
            about = parse_json(file.read(4096))
        return f"{about['work']} (process {about['process']} on {about['host']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
