"""Captions as people and tools write them: lists of files with captions, and text files next to the videos.

`READERS`, `LISTS` and `TEXTS` define what is supported; training/README.md shows it. A caption that cannot be used, for
example one with half a character, affects its own clip only: the clip is skipped and reported. A list with the wrong
structure is refused entirely, and the error names the line.
"""

from __future__ import annotations

import codecs
import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from training.data.tars import Member
from vc_core.errors import UserError, spelled
from vc_core.parsing import parse_json
from vc_core.video import IMAGES, Media, is_image
from vc_core.video.images import is_animated
from vc_core.video.opening import HEAD

FILE = ("file", "file_name", "filename", "file_path", "filepath", "path", "media_path", "video", "video_path",
        "video_file_name", "image", "image_path", "image_file_name")  # fmt: skip
CAPTION = ("caption", "captions", "text", "txt", "prompt", "description", "sentence")
"""Names of columns and keys, first match first. Case, spaces, BOMs and `-` instead of `_` do not matter."""

START, END = "start", "end"
"""Optional columns and keys of lists: the seconds of a file where its clip starts and ends, as `./vc clean` writes."""

VIDEOS = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".m2v", ".ts", ".mts", ".m2ts", ".wmv", ".asf",
     ".flv", ".f4v", ".3gp", ".3g2", ".ogv", ".mxf", ".vob", ".gif", ".y4m", ".h264", ".264", ".h265", ".265", ".hevc",
     ".dv", ".divx", ".rm", ".rmvb"}
)  # fmt: skip
"""File extensions of videos. A file with another extension counts as a video if it has a text file next to it."""

DEEPEST = 50  # levels of lists and objects in other columns: shards must be able to store what was read
LONGEST = 2**20  # bytes of the text of one caption
_FIX = "Fix it or remove this clip."


@dataclass(frozen=True)
class Entry:
    """A video or image and its caption."""

    file: str  # relative to the folder, or absolute; for a member of a tar only used in messages
    caption: str
    others: Mapping[str, Any]  # other columns or keys
    fault: str = ""  # why it cannot be used, if that is already known
    member: Member | None = None  # of a tar, if it is not a file of the folder
    span: tuple[float, float] | None = None  # the part of the file to use, in seconds; the end may be infinite

    def is_image(self, folder: Path) -> bool:
        """Whether it is a still image, see `vc_core.video.is_image`."""
        if self.member is None:
            return is_image(folder / self.file)
        return PurePath(self.file).suffix.lower() in IMAGES and not is_animated(self.member.read()[:HEAD])

    def name(self, folder: Path) -> str:
        """Its name for messages, in printable characters."""
        return printable(self.file if self.member else str(folder / self.file))

    def source(self, folder: Path) -> Path | Media:
        """The path or data to read frames from. Raises `UserError` if the entry cannot be used."""
        if self.fault:
            raise UserError(self.fault)
        if self.member is not None:
            return Media(self.name(folder), self.member.read())
        path = folder / self.file
        if not path.exists() and "\\" in self.file:  # the list was written on Windows
            path = folder / self.file.replace("\\", "/")
        if path.exists() and not (path.is_file() or path.is_dir()):  # opening a pipe would block forever
            name = self.name(folder)
            raise UserError(f"Expected a video or an image, but {name} is not a regular file. Fix the list.")
        return path


def printable(text: str) -> str:
    """Escape the characters of a text that UTF-8 cannot encode (surrogates) and control characters."""
    return re.sub("[\x00-\x1f\x7f\ud800-\udfff]", lambda match: repr(match[0])[1:-1], text)


# --- Text -----------------------------------------------------------------------------------------------------------


def as_text(data: bytes) -> str:
    """Decode a text as UTF-8, or as its byte order mark says. Bytes that are not valid UTF-8 become lone surrogates.

    Raises `ValueError` if the entire text has another encoding.
    """
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):  # first: UTF-32's mark begins with UTF-16's
        text = data.decode("utf-32", "surrogatepass")
    elif data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = data.decode("utf-16", "surrogatepass")
    else:
        text = data.decode("utf-8", "surrogateescape")
    if 4 * text[:100].count("\0") > len(text[:100]):  # only a few: one broken caption
        raise ValueError("its encoding is neither UTF-8 nor UTF-16 or UTF-32 with a byte order mark")
    return text.lstrip("\ufeff")


def _is_broken(text: str) -> bool:
    """Whether it contains surrogates, which no Unicode encoding can write."""
    return any("\ud800" <= char <= "\udfff" for char in text)


def _caption_in(value: Any) -> str | None:
    """The caption in a value of a list or a JSON: a text, or the first of several texts that is not empty."""
    if isinstance(value, (list, tuple)):
        texts = [text for text in value if isinstance(text, str)]
        return next((text for text in texts if text.strip()), texts[0] if texts else None)
    return value if isinstance(value, str) else None


def named_in(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The first of the names that the row contains, in the row's own spelling."""
    spellings = {_plain(name): name for name in reversed(row)}
    return next((spellings[name] for name in names if name in spellings), None)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "_", name.strip("\ufeff \t\r\n\xa0\u200b\"'").casefold())


# --- Lists ----------------------------------------------------------------------------------------------------------

Rows = Iterable[tuple[str, Any]]
"""For each row its place, for messages, and its values by column or key."""


def _csv(text: str) -> Rows:
    if separator := re.match(r"sep=(.)(?=\r|\n)", text):  # Excel's first line
        text = text[separator.end() :]
    head = re.split(r"[\r\n]", text.lstrip("\r\n "), maxsplit=1)[:1]
    fitting = (mark for mark in ",;\t|" if _names_both(next(csv.reader(head, delimiter=mark), [])))
    mark = separator[1] if separator else next(fitting, ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True, skipinitialspace=True)
    try:
        yield from _table((f"Line {reader.line_num}", cells) for cells in reader)
    except csv.Error as error:
        raise ValueError(f"Line {reader.line_num} is not CSV ({error}). Put quotes around an entire column") from error


def _tsv(text: str) -> Rows:
    """Lines with tabs. Quotes are part of the text, except around an entire column whose own quotes are doubled."""

    def unquoted(cell: str) -> str:
        quoted = re.fullmatch('"((?:[^"]|"")*)"', cell)
        return quoted[1].replace('""', '"') if quoted else cell

    lines = (line.split("\t") for line in re.split(r"\r\n|\n|\r", text))
    return _table((f"Line {number}", [*map(unquoted, cells)]) for number, cells in enumerate(lines, 1))


def _table(rows: Iterable[tuple[str, list[str]]]) -> Rows:
    header: list[str] | None = None
    for where, cells in rows:
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = [cell.strip("\ufeff \t\r\xa0") for cell in cells]
            while header and not header[-1]:  # padding by spreadsheets; a row's text there is part of a caption
                header.pop()
            names = [_plain(name) for name in header if name]
            if duplicate := next((name for name in names if names.count(name) > 1), None):
                raise ValueError(f"{where} has two columns named {duplicate}. Expected each column once")
        elif any(cell.strip() for cell in cells[len(header) :]):
            raise ValueError(f"{where} has more columns than the header. Put a caption with a comma in quotes")
        else:
            yield where, {name: cell.strip() for name, cell in zip(header, cells, strict=False) if name}


def _names_both(header: Sequence[str]) -> bool:
    row = dict.fromkeys(header)
    return all(named_in(row, names) is not None for names in (FILE, CAPTION))


def _jsonl(text: str) -> Rows:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"Line {number}", _json(line, f"Line {number}")


def _json_file(text: str) -> Rows:
    """A list of objects, alone or under one key; an object from files to captions or objects; or JSONL."""
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) > 1 and all(line.lstrip().startswith("{") and line.rstrip().endswith("}") for line in lines):
        return _jsonl(text)
    value = _json(text)
    if isinstance(value, Mapping):
        lists = [item for item in value.values() if isinstance(item, list) and item and isinstance(item[0], Mapping)]
        if len(lists) == 1:
            value = lists[0]
        elif not _names_both(list(value)):
            rows = {file: row if isinstance(row, Mapping) else {CAPTION[0]: row} for file, row in value.items()}
            value = [{**row, FILE[0]: file} for file, row in rows.items()]
    return ((f"Entry {n}", row) for n, row in enumerate(value if isinstance(value, list) else [value], 1))


def _json(text: str, where: str = "it") -> Any:
    try:
        return parse_json(text, deepest=math.inf)  # too deep a value affects one clip only, see `_checked`
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error


READERS: dict[str, Callable[[str], Rows]] = {".csv": _csv, ".jsonl": _jsonl, ".tsv": _tsv, ".json": _json_file}
"""File extensions of lists -> the reader of their text."""

LISTS = ("captions.csv", "captions.tsv", "captions.jsonl", "captions.json",
         "metadata.csv", "metadata.tsv", "metadata.jsonl")  # fmt: skip
"""File names of lists that are found automatically. The second line is Hugging Face's; those may have other uses."""


def read_list(path: Path) -> list[Entry]:
    """The entries of a list. Its files are relative to its folder.

    Raises:
        UserError: it cannot be read, has the wrong structure, or none of its entries can be used.
    """
    formats = " or ".join(READERS)
    expected = f"Expected {formats} with a file and a caption in each row."
    if path.suffix.lower() not in READERS:
        raise UserError(f"Expected captions as {formats}, got {path}. Convert it to one of these formats.")
    try:
        entries = [_entry(where, row) for where, row in _rows(path)]
    except (OSError, ValueError) as error:
        if str(error).startswith(("Line", "Entry")):
            raise UserError(f"{path}: {error}. {expected}") from error
        raise UserError(f"{path} cannot be read as a list of captions ({error}). {expected}") from error
    if not entries:
        raise UserError(f"{path} lists no files. {expected}")
    if all(entry.fault for entry in entries):
        raise UserError(f"{path}: {entries[0].fault} {expected}")
    return entries


def _rows(path: Path) -> Rows:
    return READERS[path.suffix.lower()](as_text(path.read_bytes()))


def has_captions(path: Path) -> bool:
    """Whether the first row of a list has a file and a caption."""
    try:
        row = next(iter(_rows(path)), ("", None))[1]
    except (OSError, ValueError):
        return True  # reading it will report the error
    return isinstance(row, Mapping) and _names_both(list(row))


def _entry(where: str, row: Any) -> Entry:
    if not isinstance(row, Mapping):
        raise ValueError(f"{where} is not an object with the keys file and caption")
    file, caption = named_in(row, FILE), named_in(row, CAPTION)
    others = {name: value for name, value in row.items() if name not in (file, caption)}
    if file is None:
        fault = f"has no 'file' (it has {spelled(list(row), ' and ') or 'nothing'})"
    elif not isinstance(row[file], str) or not row[file].strip():
        fault = "has no text for 'file'"
    else:
        return _with_span(where, _checked(where, row[file], _caption_in(row.get(caption)), others))
    return Entry("", "", {}, f"{where} {fault}. {_FIX}")


def _with_span(where: str, entry: Entry) -> Entry:
    """The entry with the span in its columns `START` and `END`, if it has them. An empty one is the file's own."""
    texts = [entry.others.get(named_in(entry.others, [name])) for name in (START, END)]
    empty = [text is None or (isinstance(text, str) and not text.strip()) for text in texts]
    if entry.fault or all(empty):
        return entry
    try:
        values = zip(texts, empty, (0.0, math.inf), strict=True)
        start, end = (default if missing else float(text) for text, missing, default in values)
        if 0 <= start < end:
            return replace(entry, span=(start, end))
    except (TypeError, ValueError):
        pass
    expected = "Expected seconds from the beginning of the file, the start before the end"
    fault = f"{where} has {START} {spelled(texts[0])} and {END} {spelled(texts[1])}. {expected}. {_FIX}"
    return Entry(entry.file, "", {}, fault)


def _checked(
    where: str, file: str, caption: str | None, others: Mapping[str, Any], member: Member | None = None
) -> Entry:
    """An entry, with its `fault` if it cannot be used."""
    if caption is None:
        fault = "has no caption"
    elif _is_broken(caption):
        fault = f"has a caption with invalid characters ('{printable(caption)[:60]}')"
    elif "\0" in file:
        fault = "has a file name with a zero byte"
    elif "\0" in caption:
        fault = f"has a caption with a zero byte ('{printable(caption)[:60]}')"
    elif _is_deep(others):
        fault = f"nests lists and objects more than {DEEPEST} levels deep"
    else:
        return Entry(file, caption, others, "", member)
    return Entry(file, "", {}, f"{where} {fault}. {_FIX}", member)


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        holders = [item for item in level if isinstance(item, (Mapping, list))]
        level = [inner for item in holders for inner in (item.values() if isinstance(item, Mapping) else item)]
    return bool(level)


# --- Text files next to videos --------------------------------------------------------------------------------------


def _plain_text(data: bytes) -> str | None:
    return " ".join(as_text(data).split())


class _Failed(ValueError):
    """The .json says that the sample could not be downloaded or cut."""


def _json_text(data: bytes) -> str | None:
    """The caption in the .json that img2dataset, video2dataset and others write next to a file."""
    about = _json(as_text(data))
    if isinstance(about, str):
        return about
    if not isinstance(about, Mapping):
        raise ValueError("it is not an object with the key caption")
    status = about.get("status")
    if isinstance(status, str) and status.startswith("failed"):
        raise _Failed(f"its status is {status}: {about.get('error_message')}"[:200])
    name = named_in(about, CAPTION)
    return _caption_in(about[name]) if name else None


TEXTS: dict[str, Callable[[bytes], str | None]] = {".txt": _plain_text, ".caption": _plain_text, ".json": _json_text}
"""File extensions of texts next to videos -> the caption in their bytes, or None. The first non-empty one is used."""


def entry_with_texts(file: str, texts: Mapping[str, bytes], member: Member | None = None) -> Entry:
    """The entry of a file and the texts next to it.

    Args:
        texts: bytes of the texts by extension, in lower case.
        member: the file, if it is in a tar.
    """
    captions, faults = [], []
    for ending in (ending for ending in TEXTS if ending in texts):
        try:
            if len(texts[ending]) > LONGEST:
                raise ValueError(f"it has more than {LONGEST} bytes")
            captions.append(TEXTS[ending](texts[ending]))
        except ValueError as error:
            faults.append(f"Its {ending} cannot be used ({error}). {_FIX}")
            if isinstance(error, _Failed):
                captions = []
                break
    captions = [caption for caption in captions if caption is not None]
    if faults and not captions:
        return Entry(file, "", {}, printable(faults[0]), member)
    # video2dataset writes several captions into a .txt as a Python list; the .json contains them properly.
    good = (text for text in captions if text.strip() and not _is_broken(text) and not re.fullmatch(r"\[.*\]", text))
    caption = next(good, captions[0] if captions else None)
    return _checked("Its text file", file, caption, {}, member)
