"""Members of tar files, compressed or not, read without unpacking."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import tarfile
import threading
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from vc_core.errors import UserError

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
"""File extensions of shards."""

COMPRESSED: dict[bytes, Callable[..., BinaryIO]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
"""First bytes of compressed files, whatever their names -> the function that opens them."""

DAMAGE = (tarfile.TarError, OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, MemoryError, OverflowError)
"""Errors from reading a damaged tar; the last two are for impossible sizes."""

LARGEST = 2**31  # bytes of a member to read into memory
# The limit for a compressed tar, unless RATIO times the size of the tar is larger: bombs have a ratio of a thousand,
# videos and images hardly become smaller.
UNPACKED, RATIO = 2**28, 10
_LONGEST_HEADER = 2**20  # bytes of a name or of a header's extra values, which tarfile reads at once


@dataclass(frozen=True)
class Member:
    """Position of a member: in the tar, or in the decompressed tar."""

    tar: Path
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.tar}:{self.name}"

    def read(self) -> bytes:
        """The member's bytes. Raises `UserError` if some are missing or there are too many."""
        try:
            opener = compression(self.tar)
            most = LARGEST if opener is None else min(LARGEST, max(UNPACKED, RATIO * self.tar.stat().st_size))
            if self.size > most:
                raise UserError(
                    f"{self} has {self.size / 2**30:.1f} GiB. Expected at most {most / 2**30:.3g} GiB. Unpack the tar."
                )
            # A compressed tar stays open per process and thread: reading on is cheap, going back starts over.
            stream = opener and _stream(self.tar, os.getpid(), threading.get_ident())
            with nullcontext(stream) if stream else open(self.tar, "rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except DAMAGE as error:
            raise UserError(f"{self} cannot be read ({error}). Download {self.tar.name} again.") from error
        if len(data) != self.size:
            raise UserError(f"{self} is cut off. Download {self.tar.name} again.")
        return data


@lru_cache(maxsize=4)
def _stream(tar: Path, process: int, thread: int) -> BinaryIO:
    return compression(tar)(tar, "rb")


def compression(tar: Path) -> Callable[..., BinaryIO] | None:
    """The function that opens a compressed tar; None if it is not compressed. Raises `OSError`."""
    with open(tar, "rb") as file:
        start = file.read(8)
    return next((opener for mark, opener in COMPRESSED.items() if start.startswith(mark)), None)


def first_name(tar: Path) -> str:
    """The name of the first member; empty if there is none."""
    try:
        with (compression(tar) or open)(tar, "rb") as file:
            return file.read(100).rstrip(b"\0").decode(errors="replace")
    except DAMAGE:
        return ""


class _Headers:
    """A file for tarfile with a limit on reads: tarfile would believe any length of a header in the file."""

    def __init__(self, file: BinaryIO):
        self.seek, self.tell, self._read = file.seek, file.tell, file.read

    def read(self, size: int) -> bytes:
        if size > _LONGEST_HEADER:
            raise ValueError(f"a header has {size} bytes")
        return self._read(size)


def members_of(tar: Path) -> tuple[list[Member], Exception | None]:
    """The files in a tar, in order, and the error (one of `DAMAGE`) if the rest is damaged.

    If a name occurs twice, for example after `tar --append`, the last one counts.
    """
    members: dict[str, Member] = {}
    try:
        opener = compression(tar)
        with (opener or open)(tar, "rb") as file, tarfile.open(fileobj=_Headers(file), mode="r:") as archive:
            end_of_file = LARGEST**2 if opener else tar.stat().st_size
            for info in archive:
                archive.members = []  # otherwise it collects all members
                if info.offset_data + info.size > end_of_file:
                    raise EOFError(f"{info.name} extends beyond the end of the file")
                if info.isreg() and not info.issparse():
                    name = info.name.removeprefix("./")
                    members[name] = Member(tar, name, info.offset_data, info.size)
            file.seek(archive.offset)  # tarfile stops here silently, whatever follows
            end = file.read(tarfile.BLOCKSIZE)
            if any(end) or not end:
                raise ValueError(f"expected a member or the end mark at byte {archive.offset}")
    except DAMAGE as error:
        return list(members.values()), error
    return list(members.values()), None
