"""Folders as people have them: walked through links, without what systems put into them."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from .errors import counted

PUT_THERE_BY_SYSTEMS = frozenset(
    {".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "$recycle.bin",
     "system volume information", "lost+found"}
)  # fmt: skip
"""Names of files and folders, in lower case, that nobody made: of macOS, Windows, Synology and Linux."""


def put_there_by_systems(name: str) -> bool:
    """Whether a file or folder of this name is one that a system put there, `._` and what follows among them."""
    return name.lower() in PUT_THERE_BY_SYSTEMS or name.startswith("._")


def files_below(
    top: str | os.PathLike, hidden: bool = False, without: Sequence[Path] = (), tell: bool = True
) -> list[Path]:
    """The files in a folder and in those below it, in the order of their names; those of systems are no files here.

    Links are followed. A folder that is reached in two ways is taken once, under its own place where that is below
    `top`; links that lead back, and what cannot be followed or listed, are said in a warning for each kind. Of a folder
    that is not there no file is.

    Args:
        hidden: files and folders whose name begins with a dot too.
        without: folders that are left out, such as one that results go to.
        tell: False leaves out the warnings.
    """
    if not os.path.isdir(top):
        return []
    top, seen, pending, told = Path(top), set(), [Path(top)], _Told()
    above = {os.path.realpath(parent) for parent in Path(os.path.realpath(top)).parents}
    left_out = {os.path.realpath(path) for path in without} - {os.path.realpath(top)}
    found = []

    def taken(name: str) -> bool:
        return not put_there_by_systems(name) and (hidden or not name.startswith("."))

    for linked in pending:  # grows: a folder's own place comes before the links to it
        for folder, inner, names in os.walk(linked, onerror=told.unlisted):
            real = os.path.realpath(folder)
            if real in left_out:
                inner.clear()
                continue
            if real in seen or real in above:
                told.back(Path(folder).relative_to(top))
                inner.clear()
                continue
            seen.add(real)
            inner[:] = sorted(filter(taken, inner))
            pending += [Path(folder, name) for name in inner if _is_link(Path(folder, name))]
            inner[:] = [name for name in inner if not _is_link(Path(folder, name))]
            for path in (Path(folder, name) for name in sorted(filter(taken, names))):
                if path.is_file():
                    found.append(path)
                else:
                    told.lost(path.relative_to(top))
    if tell:
        told.warn(top)
    return sorted(found)


def _is_link(path: Path) -> bool:
    """Of junctions too, which are what Windows has beside links."""
    return path.is_symlink() or getattr(os.path, "isjunction", lambda _: False)(path)


class _Told:
    """What was met on a walk and not taken, by the words for it."""

    def __init__(self) -> None:
        self.met: dict[tuple[str, str], list[str]] = {}

    def _add(self, noun: str, words: str, path: Path | str) -> None:
        self.met.setdefault((noun, words), []).append(str(path))

    def back(self, path: Path) -> None:
        self._add("linked folder", "that lead to a folder which is taken already (a loop, or the same twice)", path)

    def lost(self, path: Path) -> None:
        self._add("name", "that no file is behind (a broken link, or a device)", path)

    def unlisted(self, error: OSError) -> None:
        self._add("folder", f"that cannot be listed ({error.strerror})", error.filename)

    def warn(self, top: Path) -> None:
        for (noun, words), paths in self.met.items():
            number = counted(len(paths), noun)
            warnings.warn(f"{top}: leaves out {number} {words}: {named(paths)}.", stacklevel=3)


def named(names: Sequence[str], shown: int = 3) -> str:
    """Some of many names: `a, b, c and 4 more`."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
