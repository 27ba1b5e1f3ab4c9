"""List files in folders, following links and skipping files that systems create."""

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
"""Lower-case names of files and folders that systems create: macOS, Windows, Synology and Linux."""


def is_system_file(name: str) -> bool:
    """Whether operating systems create files or folders of this name, including names that start with `._`."""
    return name.lower() in _OF_SYSTEMS or name.startswith("._")


def exists(path: str | os.PathLike) -> bool:
    """Whether a file or a folder exists at a path. False for devices, which may be endless, and for impossible names,
    for which pathlib raises."""
    return os.path.isfile(path) or os.path.isdir(path)


def named_below(folders: Iterable[Path], name: str) -> list[Path]:
    """Return the files and folders of a name, at most one in each folder, and never outside them, for untrusted names.

    A name with a drive, a network share, a root or a part that leads upwards, in Linux or Windows style, gives none.
    Links in the folders are followed, as in ComfyUI, because the owner of the folders created them.
    """
    path = PureWindowsPath(name)  # accepts both slashes
    if path.anchor or not path.parts or not all(part.strip(" .") for part in path.parts):
        return []
    return [folder / name for folder in folders if exists(folder / name)]


def files_below(
    top: str | os.PathLike, hidden: bool = False, without: Sequence[Path] = (), warn: bool = True
) -> list[Path]:
    """Return the files in a folder and its subfolders, sorted by path, without system files.

    Links are followed. A folder that is reached twice is listed once, at its real path if that is below `top`. With
    `warn`, loops and anything that cannot be followed or listed cause one warning per kind. `hidden` includes names
    that start with a dot. `without` are folders to skip, such as one for results. A missing folder has no files.
    """
    if not os.path.isdir(top):
        return []
    top, seen, pending, files = Path(top), set(), [Path(top)], []
    above = {os.path.realpath(parent) for parent in Path(os.path.realpath(top)).parents}
    excluded = {os.path.realpath(path) for path in without} - {os.path.realpath(top)}
    skipped: dict[tuple[str, str], list[str]] = {}  # (noun, reason) -> paths

    def accepted(name: str) -> bool:
        return not is_system_file(name) and (hidden or not name.startswith("."))

    def skip(noun: str, reason: str, path: Path | str) -> None:
        skipped.setdefault((noun, reason), []).append(str(path))

    def unlisted(error: OSError) -> None:
        skip("folder", f"cannot be listed: {error.strerror}", error.filename)

    for linked in pending:  # grows: real folders come before the links to them
        for folder, inner, names in os.walk(linked, onerror=unlisted):
            real, here = os.path.realpath(folder), Path(folder)
            if real in excluded or real in seen or real in above:
                inner.clear()
                if real not in excluded:
                    skip("linked folder", "already listed: a loop, or the same folder twice", here.relative_to(top))
                continue
            seen.add(real)
            folders = sorted(filter(accepted, inner))
            pending += [here / name for name in folders if _is_link(here / name)]
            inner[:] = [name for name in folders if not _is_link(here / name)]
            for path in (here / name for name in sorted(filter(accepted, names))):
                if path.is_file():
                    files.append(path)
                else:
                    skip("path", "a broken link, or a device", path.relative_to(top))
    for (noun, reason), paths in skipped.items() if warn else ():
        warnings.warn(f"{top}: Skipped {counted(len(paths), noun)} ({reason}): {shorten(paths, 3)}.", stacklevel=2)
    return sorted(files)


def _is_link(path: Path) -> bool:
    """Whether a path is a link, or a junction, Windows' other kind of link."""
    return path.is_symlink() or getattr(os.path, "isjunction", lambda _: False)(path)
