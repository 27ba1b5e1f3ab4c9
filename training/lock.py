"""Locks on folders, so that one process at a time works in them, or one for each part of the work. A second process
learns who has the lock."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

from training.launch import LOST
from training.ranks import World
from vc_core.disk import writing
from vc_core.errors import UserError
from vc_core.parsing import parse_json

FILE = ".lock"
"""In the locked folder. After its first byte, which Windows hides while the file is locked, it names the process. The
file stays afterwards; the operating system releases the lock when the process ends, however it ends."""
TURN = f"{FILE}-turn"
"""The lock of the process whose turn it is, see `locked_part`."""
PATIENCE = 600.0
"""Seconds to wait for a turn. A turn takes moments, but the last one reads the headers of all shards."""


@contextmanager
def locked(folder: Path, work: str, file: str = FILE, patience: float = 0.0) -> Iterator[None]:
    """Lock an existing folder during some work.

    Args:
        work: name of the work, for messages of other processes.
        file: name of the lock file.
        patience: seconds to wait for a process that has the lock.

    Raises:
        UserError: another process has the lock, or no lock can be created there.
    """
    from filelock import FileLock, Timeout

    path = Path(folder) / file
    holder = _holder(path)
    lock = FileLock(path)
    with writing(folder):
        try:
            lock.acquire(timeout=patience)
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
def locked_part(
    folder: Path, work: str, part: tuple[int, int] | None
) -> Iterator[Callable[[], AbstractContextManager[bool]]]:
    """As `locked`, but processes with different parts of the work may have locks at the same time.

    Args:
        part: I and N of part I of N; None: all of the work, which locks out all parts.

    Yields `turn`. Inside `with turn() as alone`, no other process has its turn; `alone`: none has a lock.

    Raises:
        UserError: another process has this part or all of the work, works on parts of another number, or, if `part` is
            None, on any part.
    """
    own = FILE
    if part is not None:
        own, work = f"{FILE}-{part[0]}-of-{part[1]}", f"{work} --part {part[0]}/{part[1]}"

    @contextmanager
    def turn() -> Iterator[bool]:
        with locked(folder, work, TURN, PATIENCE):
            yield not dict(_holders(folder, own))

    with ExitStack() as stack:
        with locked(folder, work, TURN, PATIENCE):
            stack.enter_context(locked(folder, work, own))
            for file, holder in _holders(folder, own):
                if part is None or file == FILE:
                    raise UserError(f"{folder} is in use by {holder}. Wait until it ends, or choose another folder.")
                if not file.endswith(f"-of-{part[1]}"):
                    raise UserError(
                        f"{folder} is in use by {holder}, but --part is {part[0]}/{part[1]}. Use the same number of "
                        "parts for all of them, or wait until the others end."
                    )
        yield turn


def _holders(folder: Path, own: str) -> Iterator[tuple[str, str]]:
    """Yield file and holder of each lock in a folder that another process has. Only one process at a time may ask,
    because asking takes the lock for a moment."""
    from filelock import FileLock, Timeout

    for path in sorted(Path(folder).glob(f"{FILE}*")):
        if path.name in (own, TURN):
            continue
        holder = _holder(path)
        with writing(folder):
            try:
                with FileLock(path).acquire(timeout=0):
                    pass
            except Timeout:
                pass
            else:
                continue
        yield path.name, holder


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
