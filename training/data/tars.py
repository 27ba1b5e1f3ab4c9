"""Members of tar files, compressed or not, read where they lie."""

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
"""Endings of shards."""

COMPRESSED: dict[bytes, Callable[..., BinaryIO]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
"""What compressed files begin with, whatever their names are -> what opens them."""

DAMAGE = (tarfile.TarError, OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, MemoryError, OverflowError)
"""What reading a damaged tar raises; the last two of sizes that nothing has."""

LARGEST = 2**31  # bytes of a member that are read into memory
# The same of a compressed tar, where members may also have RATIO times the bytes of the whole tar: a bomb has a
# thousand times, and videos and images hardly become smaller.
UNPACKED, RATIO = 2**28, 10
_LONGEST_HEADER = 2**20  # bytes of a name, or of a header's further values, which tarfile reads at once


@dataclass(frozen=True)
class Member:
    """Where the bytes of a member lie: in the tar, or in what decompressing it gives."""

    tar: Path
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.tar}:{self.name}"

    def read(self) -> bytes:
        """Its bytes. Raises `UserError` where they are not all there any more, or are too many."""
        try:
            opener = compression(self.tar)
            most = LARGEST if opener is None else min(LARGEST, max(UNPACKED, RATIO * self.tar.stat().st_size))
            if self.size > most:
                raise UserError(
                    f"{self}: has {self.size / 2**30:.1f} GiB, and {most / 2**30:.3g} are read at the most: unpack it."
                )
            # A compressed one stays open, for each process and thread: reading on is cheap, going back begins anew.
            kept = opener and _stream(self.tar, os.getpid(), threading.get_ident())
            with nullcontext(kept) if kept else open(self.tar, "rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except DAMAGE as error:
            raise UserError(f"{self}: cannot be read ({error}): get {self.tar.name} anew.") from error
        if len(data) != self.size:
            raise UserError(f"{self}: is cut off: get {self.tar.name} anew.")
        return data


@lru_cache(maxsize=4)
def _stream(tar: Path, process: int, thread: int) -> BinaryIO:
    return compression(tar)(tar, "rb")


def compression(tar: Path) -> Callable[..., BinaryIO] | None:
    """What opens a compressed tar; None where it is not compressed. Raises `OSError`."""
    with open(tar, "rb") as file:
        start = file.read(8)
    return next((opener for mark, opener in COMPRESSED.items() if start.startswith(mark)), None)


def first_name(tar: Path) -> str:
    """Of the first member; empty where there is none."""
    try:
        with (compression(tar) or open)(tar, "rb") as file:
            return file.read(100).rstrip(b"\0").decode(errors="replace")
    except DAMAGE:
        return ""


class _Headers:
    """A tar as tarfile reads it, which takes the length of a header's text from the file: bounded here."""

    def __init__(self, file: BinaryIO):
        self.seek, self.tell, self._read = file.seek, file.tell, file.read

    def read(self, size: int) -> bytes:
        if size > _LONGEST_HEADER:
            raise ValueError(f"a header of {size} bytes")
        return self._read(size)


def members_of(tar: Path) -> tuple[list[Member], Exception | None]:
    """The files in a tar, in their order, and, where it is damaged, why there are no more (one of `DAMAGE`).

    Of one that is there twice, as after `tar --append`, the last is meant.
    """
    found: dict[str, Member] = {}
    try:
        opener = compression(tar)
        with (opener or open)(tar, "rb") as file, tarfile.open(fileobj=_Headers(file), mode="r:") as archive:
            there = LARGEST**2 if opener else tar.stat().st_size
            for info in archive:
                archive.members = []  # which would grow by all members
                if info.offset_data + info.size > there:
                    raise EOFError(f"{info.name} goes on beyond its end")
                if info.isreg() and not info.issparse():
                    name = info.name.removeprefix("./")
                    found[name] = Member(tar, name, info.offset_data, info.size)
            file.seek(archive.offset)  # where tarfile ends without a word, whatever is there
            end = file.read(tarfile.BLOCKSIZE)
            if any(end) or not end:
                raise ValueError(f"no member and no end mark at byte {archive.offset}")
    except DAMAGE as error:
        return list(found.values()), error
    return list(found.values()), None
