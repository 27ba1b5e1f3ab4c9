"""Folders as people have them: walked through links, without what systems put into them."""

import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path, PureWindowsPath

from .errors import counted, shorten

_OF_SYSTEMS = (
    *(".ds_store", "__macosx", "icon\r"),
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
    *("@eadir", "lost+found"),
)
"""Names of files and folders, in lower case, that nobody made: of macOS, of Windows, of Synology and Linux."""


def put_there_by_systems(name: str) -> bool:
    """Whether a file or folder of this name is one that a system put there, `._` and what follows among them."""
    return name.lower() in _OF_SYSTEMS or name.startswith("._")


def is_there(path: str | os.PathLike) -> bool:
    """Whether a path is that of a file or a folder: of no device, which may have no end, and no name that none can
    have, at which pathlib raises."""
    return os.path.isfile(path) or os.path.isdir(path)


def named_below(folders: Iterable[Path], name: str) -> list[Path]:
    """The files and folders of a name, one in each of the folders at most and none elsewhere, whoever wrote the name.

    A drive, a share, a root or a part that goes up, of Linux or of Windows, gives none. Links in them are followed, as
    ComfyUI does: the owner of the folders has put them there.
    """
    path = PureWindowsPath(name)  # it takes both slashes
    if path.anchor or not path.parts or not all(part.strip(" .") for part in path.parts):
        return []
    return [folder / name for folder in folders if is_there(folder / name)]


def files_below(
    top: str | os.PathLike, hidden: bool = False, without: Sequence[Path] = (), tell: bool = True
) -> list[Path]:
    """The files in a folder and in those below it, in the order of their names; those of systems are no files here.

    Links are followed. A folder that is reached in two ways is taken once, under its own place where that is below
    `top`; links that lead back, and what cannot be followed or listed, are told in a warning for each kind, where
    `tell` is True. `hidden` takes names that begin with a dot too; `without` are folders to leave out, such as one that
    results go to. Of a folder that is not there no file is.
    """
    if not os.path.isdir(top):
        return []
    top, seen, pending, found = Path(top), set(), [Path(top)], []
    above = {os.path.realpath(parent) for parent in Path(os.path.realpath(top)).parents}
    left_out = {os.path.realpath(path) for path in without} - {os.path.realpath(top)}
    met: dict[tuple[str, str], list[str]] = {}  # and not taken, by noun and words

    def taken(name: str) -> bool:
        return not put_there_by_systems(name) and (hidden or not name.startswith("."))

    def note(noun: str, words: str, path: Path | str) -> None:
        met.setdefault((noun, words), []).append(str(path))

    def unlisted(error: OSError) -> None:
        note("folder", f"that cannot be listed ({error.strerror})", error.filename)

    for linked in pending:  # grows: a folder's own place comes before the links to it
        for folder, inner, names in os.walk(linked, onerror=unlisted):
            real, here = os.path.realpath(folder), Path(folder)
            if real in left_out or real in seen or real in above:
                inner.clear()
                if real not in left_out:
                    words = "that lead to a folder which is taken already (a loop, or the same twice)"
                    note("linked folder", words, here.relative_to(top))
                continue
            seen.add(real)
            folders = sorted(filter(taken, inner))
            pending += [here / name for name in folders if _is_link(here / name)]
            inner[:] = [name for name in folders if not _is_link(here / name)]
            for path in (here / name for name in sorted(filter(taken, names))):
                if path.is_file():
                    found.append(path)
                else:
                    note("name", "that no file is behind (a broken link, or a device)", path.relative_to(top))
    for (noun, words), paths in met.items() if tell else ():
        warnings.warn(f"{top}: leaves out {counted(len(paths), noun)} {words}: {shorten(paths, 3)}.", stacklevel=2)
    return sorted(found)


def _is_link(path: Path) -> bool:
    """Of junctions too, which are what Windows has beside links."""
    return path.is_symlink() or getattr(os.path, "isjunction", lambda _: False)(path)
