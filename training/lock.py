"""Folders that one process at a time works in: a second one is told who does, instead of spoiling both works."""

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
"""In a folder that is worked in: who does, after the first byte, which Windows shows to nobody while it is locked. It
stays when the work has ended; the lock on it is the system's, and ends with the process, however that ends."""


@contextmanager
def held(folder: Path, work: str) -> Iterator[None]:
    """Holds a folder, which is there, while something works in it.

    Args:
        work: what works, for others to be told.

    Raises:
        UserError: another process holds it, or no lock can be made there; the message says which.
    """
    from filelock import FileLock, Timeout

    path = Path(folder) / FILE
    holder = _holder(path)
    lock = FileLock(path)
    with writing(folder):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            told = f"{folder}: {holder} is at work in it: wait until it has ended, or give another folder."
            raise UserError(told) from None
    try:
        with writing(folder):
            _sign(path, json.dumps({"work": work, "process": os.getpid(), "host": socket.gethostname()}))
        yield
    finally:
        with suppress(OSError):
            _sign(path, "")
        lock.release()


@contextmanager
def held_by(world: World, folder: Path, work: str) -> Iterator[None]:
    """The same for the processes of a run, of which the main one holds the folder. All of them take part.

    Raises:
        UserError: see `held`; on the main process.
        SystemExit: the same, on the others.
    """
    refused = None
    with ExitStack() as stack:
        try:
            if world.main:
                stack.enter_context(held(folder, work))
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
    """Who holds a lock, as its file says."""
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(1)
            said = parse_json(file.read(4096))
        return f"{said['work']} (process {said['process']} on {said['host']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
