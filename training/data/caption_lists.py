"""Captions as people and tools write them: lists of files with captions, and texts beside files.

`LISTS` and `TEXTS` are the table of what is understood; training/README.md shows it. One that cannot be used, such as a
caption with half a character, is the fault of its clip alone: the clip is left out and told. A list that is not built
as expected is refused as a whole, with the line.
"""

from __future__ import annotations

import codecs
import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
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
"""What columns and keys are called, the first one that is there: in any case, with spaces, BOMs and `-` for `_`."""

VIDEOS = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".m2v", ".ts", ".mts", ".m2ts", ".wmv", ".asf",
     ".flv", ".f4v", ".3gp", ".3g2", ".ogv", ".mxf", ".vob", ".gif", ".y4m", ".h264", ".264", ".h265", ".265", ".hevc",
     ".dv", ".divx", ".rm", ".rmvb"}
)  # fmt: skip
"""Endings of videos. What has another one is taken for one where a text lies beside it."""

DEEPEST = 50  # lists and objects in one another that further columns may have: what is read must be written
LONGEST = 2**20  # bytes that the text of one caption may have
_MEND = ": mend it or leave out this clip."


@dataclass(frozen=True)
class Entry:
    """A video or image and its caption."""

    file: str  # relative to the folder, or absolute; of a member of a tar for messages alone
    caption: str
    others: Mapping[str, Any]  # further columns or keys
    fault: str = ""  # why it cannot be used, where that is known already
    member: Member | None = None  # of a tar, where it is none of the folder's files

    def is_image(self, folder: Path) -> bool:
        """Whether it is a still picture, see `vc_core.video.is_image`."""
        if self.member is None:
            return is_image(folder / self.file)
        return PurePath(self.file).suffix.lower() in IMAGES and not is_animated(self.member.read()[:HEAD])

    def name(self, folder: Path) -> str:
        """For messages, in characters that can be written."""
        return printable(self.file if self.member else str(folder / self.file))

    def source(self, folder: Path) -> Path | Media:
        """What pictures are read from. Raises `UserError` where it cannot be used."""
        if self.fault:
            raise UserError(self.fault)
        if self.member is not None:
            return Media(self.name(folder), self.member.read())
        path = folder / self.file
        if not path.exists() and "\\" in self.file:  # of a list that was written on Windows
            path = folder / self.file.replace("\\", "/")
        if path.exists() and not (path.is_file() or path.is_dir()):  # to open a pipe would be to wait for ever
            raise UserError(f"{self.name(folder)}: is no file, and a video or an image was expected: mend the list.")
        return path


def printable(text: str) -> str:
    """A text with escapes for what has no bytes in UTF-8 (halves of characters, other encodings) or no shape."""
    return re.sub("[\x00-\x1f\x7f\ud800-\udfff]", lambda found: repr(found[0])[1:-1], text)


# --- Text -----------------------------------------------------------------------------------------------------------


def as_text(data: bytes) -> str:
    """A text in UTF-8, or in what its byte order mark says. What is not of that encoding stays as lone surrogates.

    Raises `ValueError` where all of it is of another encoding.
    """
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):  # one of them begins as that of UTF-16 does
        text = data.decode("utf-32", "surrogatepass")
    elif data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = data.decode("utf-16", "surrogatepass")
    else:
        text = data.decode("utf-8", "surrogateescape")
    if 4 * text[:100].count("\0") > len(text[:100]):  # a few are the fault of a caption alone
        raise ValueError("its text is neither UTF-8 nor UTF-16 or UTF-32 with a byte order mark")
    return text.lstrip("\ufeff")


def _is_broken(text: str) -> bool:
    """Whether it has what no encoding of Unicode can write."""
    return any("\ud800" <= char <= "\udfff" for char in text)


def _caption_in(value: Any) -> str | None:
    """The caption in what lists and JSON have as one: a text, or the first one of several that says anything."""
    if isinstance(value, (list, tuple)):
        texts = [each for each in value if isinstance(each, str)]
        return next((each for each in texts if each.strip()), texts[0] if texts else None)
    return value if isinstance(value, str) else None


def named_in(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The first of the names that a row has, as it is written there."""
    there = {_plain(name): name for name in reversed(row)}
    return next((there[name] for name in names if name in there), None)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "_", name.strip("\ufeff \t\r\n\xa0\u200b\"'").casefold())


# --- Lists ----------------------------------------------------------------------------------------------------------

Rows = Iterable[tuple[str, Any]]
"""Where a row is, for messages, and what it has by column or key."""


def _csv(text: str) -> Rows:
    if told := re.match(r"sep=(.)(?=\r|\n)", text):  # Excel's first line
        text = text[told.end() :]
    head = re.split(r"[\r\n]", text.lstrip("\r\n "), maxsplit=1)[:1]
    fitting = (mark for mark in ",;\t|" if _names_both(next(csv.reader(head, delimiter=mark), [])))
    mark = told[1] if told else next(fitting, ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True, skipinitialspace=True)
    try:
        yield from _table((f"line {reader.line_num}", cells) for cells in reader)
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}, quotes belong around a whole column") from error


def _tsv(text: str) -> Rows:
    """Lines with tabs: quotes are part of the text, but for those around a whole column that doubles its own."""

    def unquoted(cell: str) -> str:
        whole = re.fullmatch('"((?:[^"]|"")*)"', cell)
        return whole[1].replace('""', '"') if whole else cell

    lines = (line.split("\t") for line in re.split(r"\r\n|\n|\r", text))
    return _table((f"line {number}", [*map(unquoted, cells)]) for number, cells in enumerate(lines, 1))


def _table(rows: Iterable[tuple[str, list[str]]]) -> Rows:
    header: list[str] | None = None
    for where, cells in rows:
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = [cell.strip("\ufeff \t\r\xa0") for cell in cells]
            while header and not header[-1]:  # as programs fill up lines: what stands there is cut off a caption
                header.pop()
            names = [_plain(name) for name in header if name]
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise ValueError(f"{where}: has two columns {twice}, expected each column once")
        elif any(cell.strip() for cell in cells[len(header) :]):
            raise ValueError(f"{where}: has more columns than the header: put a caption with a comma in quotes")
        else:
            yield where, {name: cell.strip() for name, cell in zip(header, cells, strict=False) if name}


def _names_both(header: Sequence[str]) -> bool:
    row = dict.fromkeys(header)
    return all(named_in(row, names) is not None for names in (FILE, CAPTION))


def _jsonl(text: str) -> Rows:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"line {number}", _json(line, f"line {number}: ")


def _whole_json(text: str) -> Rows:
    """A list of objects, alone or under one key, an object of captions or objects by file; or JSONL."""
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) > 1 and all(line.lstrip().startswith("{") and line.rstrip().endswith("}") for line in lines):
        return _jsonl(text)
    value = _json(text, "")
    if isinstance(value, Mapping):
        lists = [each for each in value.values() if isinstance(each, list) and each and isinstance(each[0], Mapping)]
        if len(lists) == 1:
            value = lists[0]
        elif not _names_both(list(value)):
            rows = {file: of if isinstance(of, Mapping) else {CAPTION[0]: of} for file, of in value.items()}
            value = [{**row, FILE[0]: file} for file, row in rows.items()]
    return ((f"entry {n}", row) for n, row in enumerate(value if isinstance(value, list) else [value], 1))


def _json(text: str, where: str) -> Any:
    try:
        return parse_json(text, deepest=math.inf)  # the fault of a single clip, see `checked`
    except ValueError as error:
        raise ValueError(f"{where}is no JSON ({error}), expected an object") from error


READERS: dict[str, Callable[[str], Rows]] = {".csv": _csv, ".jsonl": _jsonl, ".tsv": _tsv, ".json": _whole_json}
"""Endings of lists -> how their text is read."""

LISTS = ("captions.csv", "captions.tsv", "captions.jsonl", "captions.json",
         "metadata.csv", "metadata.tsv", "metadata.jsonl")  # fmt: skip
"""What lists are called that are not named; the second line is Hugging Face's, whose lists may have other uses."""


def read_list(path: Path) -> list[Entry]:
    """The entries of a list, whose files are relative to its folder.

    Raises:
        UserError: it cannot be read, is not built as expected, or none of its entries can be used.
    """
    expected = f"expected {' or '.join(READERS)} with a file and a caption in each row"
    if path.suffix.lower() not in READERS:
        raise UserError(f"{path}: is neither {' nor '.join(READERS)}: give captions as one of them.")
    try:
        entries = [_entry(where, row) for where, row in _rows(path)]
    except (OSError, ValueError) as error:
        if str(error).startswith(("line", "entry")):
            raise UserError(f"{path}, {error}; {expected}.") from error
        raise UserError(f"{path}: cannot be read as captions ({error}): {expected}.") from error
    if not entries:
        raise UserError(f"{path}: lists no files: {expected}.")
    if all(entry.fault for entry in entries):
        raise UserError(f"{path}, {entries[0].fault.removesuffix('.')}; {expected}.")
    return entries


def _rows(path: Path) -> Rows:
    return READERS[path.suffix.lower()](as_text(path.read_bytes()))


def has_captions(path: Path) -> bool:
    """Whether the first row of a list names a file and a caption."""
    try:
        row = next(iter(_rows(path)), ("", None))[1]
    except (OSError, ValueError):
        return True  # which reading will tell
    return isinstance(row, Mapping) and _names_both(list(row))


def _entry(where: str, row: Any) -> Entry:
    if not isinstance(row, Mapping):
        raise ValueError(f"{where}: is no object with the keys file and caption")
    of_file, of_caption = named_in(row, FILE), named_in(row, CAPTION)
    others = {name: value for name, value in row.items() if name not in (of_file, of_caption)}
    if of_file is None:
        fault = f"has no 'file' (but {spelled(list(row), ' and ') or 'nothing'})"
    elif not isinstance(row[of_file], str) or not row[of_file].strip():
        fault = "has no text for 'file'"
    else:
        return _checked(where, row[of_file], _caption_in(row.get(of_caption)), others)
    return Entry("", "", {}, f"{where}: {fault}{_MEND}")


def _checked(
    where: str, file: str, caption: str | None, others: Mapping[str, Any], member: Member | None = None
) -> Entry:
    """An entry, with its fault where it cannot be used."""
    if caption is None:
        fault = "has no text for 'caption'"
    elif _is_broken(caption):
        fault = f"has a caption with broken characters ('{printable(caption)[:60]}')"
    elif "\0" in file:
        fault = "has a name with a zero byte"
    elif "\0" in caption:
        fault = f"has a caption with a zero byte ('{printable(caption)[:60]}')"
    elif _is_deep(others):
        fault = f"nests more than {DEEPEST} lists and objects"
    else:
        return Entry(file, caption, others, "", member)
    return Entry(file, "", {}, f"{where}: {fault}{_MEND}", member)


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        holders = [each for each in level if isinstance(each, (Mapping, list))]
        level = [inner for each in holders for inner in (each.values() if isinstance(each, Mapping) else each)]
    return bool(level)


# --- Texts beside files ---------------------------------------------------------------------------------------------


def _plain_text(data: bytes) -> str | None:
    return " ".join(as_text(data).split())


class _Failed(ValueError):
    """Says that a sample is none."""


def _json_text(data: bytes) -> str | None:
    """The caption that img2dataset, video2dataset and others put beside a file."""
    about = _json(as_text(data), "")
    if isinstance(about, str):
        return about
    if not isinstance(about, Mapping):
        raise ValueError("is no object with the key caption")
    status = about.get("status")
    if isinstance(status, str) and status.startswith("failed"):
        raise _Failed(f"{status}: {about.get('error_message')}"[:200])
    name = named_in(about, CAPTION)
    return _caption_in(about[name]) if name else None


TEXTS: dict[str, Callable[[bytes], str | None]] = {".txt": _plain_text, ".caption": _plain_text, ".json": _json_text}
"""Endings of texts beside files -> the caption in their bytes, or None. The first one that says anything is taken."""


def beside(file: str, texts: Mapping[str, bytes], member: Member | None = None) -> Entry:
    """The entry of a file with texts beside it, by their endings in lower case."""
    found, faults = [], []
    for ending in (each for each in TEXTS if each in texts):
        try:
            if len(texts[ending]) > LONGEST:
                raise ValueError("is too long for a caption")
            found.append(TEXTS[ending](texts[ending]))
        except ValueError as error:
            faults.append(f"its {ending} {error}{_MEND}")
            if isinstance(error, _Failed):
                found = []
                break
    captions = [caption for caption in found if caption is not None]
    if faults and not captions:
        return Entry(file, "", {}, printable(faults[0]), member)
    # A list of captions as video2dataset writes it into a .txt is Python's; the .json has the captions.
    good = (each for each in captions if each.strip() and not _is_broken(each) and not re.fullmatch(r"\[.*\]", each))
    caption = next(good, captions[0] if captions else None)
    return _checked("its text", file, caption, {}, member)
