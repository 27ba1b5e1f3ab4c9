"""Folders of videos or images with captions beside them: each sample is cut out of its file as it is needed."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.data.making import Form, make, no_motion, reading
from training.data.sample import Sample
from vc_core.conditions import drawing_size
from vc_core.errors import UserError
from vc_core.extract import read_motion
from vc_core.parsing import parse_json
from vc_core.video import IMAGES, FramePlan, VideoInfo, plan_frames, planned_frames, probe, read_image

CAPTIONS = ("captions.csv", "captions.jsonl")
"""What files of captions are called that are not named."""


@dataclass(frozen=True)
class Entry:
    """A line of a file of captions.

    Attributes:
        file: relative to the folder, or absolute.
        others: further columns or keys.
    """

    file: str
    caption: str
    others: Mapping[str, Any]

    @property
    def is_image(self) -> bool:
        return Path(self.file).suffix.lower() in IMAGES


# --- Captions -------------------------------------------------------------------------------------------------------


def read_captions(folder: Path, captions: Path | None = None) -> list[Entry]:
    """The videos or images of a folder with their captions, in the order of the file that lists them.

    Args:
        captions: a CSV with a header, or a JSONL (an object a line): columns or keys `file` and `caption`, others are
            kept. By default one of `CAPTIONS` in the folder; where there is none, a text beside each file in it
            (`swan.txt` beside `swan.mp4`), in the order of their names.

    Raises:
        UserError: there is no such file, it is empty, or a line of it is not as expected.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder, and one of videos or images was expected: check the path.")
    path = _captions_file(folder, captions)
    if path is None:
        return _texts_beside(folder)
    rows = _jsonl_rows(path) if path.suffix.lower() == ".jsonl" else _csv_rows(path)
    try:
        entries = [_entry(f"{path}, line {line}", row) for line, row in rows]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as captions ({error}): give a CSV or JSONL in UTF-8.") from error
    if not entries:
        raise UserError(f"{path}: lists no files: expected a line with file and caption for each.")
    return entries


def _captions_file(folder: Path, captions: Path | None) -> Path | None:
    if captions is None:
        found = [folder / name for name in CAPTIONS if (folder / name).is_file()]
        if len(found) == 2:
            raise UserError(f"{folder}: has both {' and '.join(CAPTIONS)}: leave one there, or name the one to take.")
        return found[0] if found else None
    captions = Path(captions)
    if not captions.is_file():
        raise UserError(f"{captions}: no such file, and a CSV or JSONL of captions was expected: check the path.")
    if captions.suffix.lower() not in (".csv", ".jsonl"):
        raise UserError(f"{captions}: is neither .csv nor .jsonl: give captions as one of them.")
    return captions


def _texts_beside(folder: Path) -> list[Entry]:
    inside = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    shown = [path for path in inside if not any(part.startswith(".") for part in path.parts)]
    texts = {path.with_suffix(""): folder / path for path in shown if path.suffix.lower() == ".txt"}
    files = [path for path in shown if path.suffix.lower() != ".txt"]
    if not texts or not files:
        raise UserError(f"{folder}: has neither {' nor '.join(CAPTIONS)} nor a text beside each file: expected a list "
                        "with file and caption in each line, or swan.txt beside swan.mp4.")  # fmt: skip
    if without := [path for path in files if path.with_suffix("") not in texts]:
        raise UserError(f"{folder}: {len(without)} files have no text beside them, {without[0]} among them: give each "
                        f"its .txt, or list those to train on in {CAPTIONS[0]}.")  # fmt: skip
    entries = []
    for path in files:
        text = texts[path.with_suffix("")]
        try:
            entries.append(Entry(path.as_posix(), " ".join(text.read_text(encoding="utf-8-sig").split()), {}))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{text}: cannot be read as a caption ({error}): give a text in UTF-8.") from error
    return entries


def _csv_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, strict=True)
        for row in reader:
            yield reader.line_num, {name: value for name, value in row.items() if name is not None}


def _jsonl_rows(path: Path) -> Iterator[tuple[int, Any]]:
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield number, parse_json(line)
                except ValueError as error:
                    raise UserError(f"{path}, line {number}: is no JSON ({error}): expected an object.") from error


def _entry(where: str, row: Any) -> Entry:
    if not isinstance(row, Mapping):
        raise UserError(f"{where}: is no object: expected the keys file and caption.")
    for name in ("file", "caption"):
        if not isinstance(row.get(name), str) or (name == "file" and not row[name]):
            raise UserError(f"{where}: has no text for '{name}': expected the columns or keys file and caption.")
    others = {name: value for name, value in row.items() if name not in ("file", "caption")}
    return Entry(row["file"], row["caption"], others)


# --- Samples --------------------------------------------------------------------------------------------------------


def random_plan(info: VideoInfo, frames: int, rate: float | None, generator: torch.Generator) -> FramePlan:
    """A frame plan (see `plan_frames`) that starts at random, anywhere from where all its frames are there.

    Raises:
        UserError: the clip is too short.
    """
    plan = plan_frames(info, frames, rate)
    spare = max(Fraction(0), Fraction(info.duration) - frames / plan.rate)
    return replace(plan, start=float(spare) * torch.rand((), generator=generator, dtype=torch.float64).item())


def pictures_of(path: Path, plan: FramePlan | None) -> Iterator[Tensor]:
    """The plan's frames, or an image where there is no plan, one after the other, `(1, 3, H, W)` in [0, 1].

    Raises:
        UserError: the file cannot be read.
    """
    if plan is None:
        yield read_image(path)
        return
    for frame in planned_frames(path, plan, ("format", "rgb24")):
        yield torch.from_numpy(frame.to_ndarray()).permute(2, 0, 1)[None].float() / 255


@dataclass(frozen=True)
class FolderClips:
    """The clips of a folder: random frames of each video, centre-cropped; of an image the whole clip is it.

    Attributes:
        folder: where relative files are.
        rate: frames a second of clips; None for the released rule, see `plan_frames`.
        nominal_height: videos are scaled to this height before their motion is taken, see `read_motion`.

    Raises:
        UserError: images among the files where clips have more than one frame.
    """

    folder: Path
    entries: Sequence[Entry]
    form: Form
    rate: float | None = None
    nominal_height: int | None = None

    def __post_init__(self) -> None:
        image = next((entry for entry in self.entries if entry.is_image), None) if self.form.frames > 1 else None
        if image is not None:
            raise UserError(
                f"{image.file} is an image, and clips of {self.form.frames} frames are trained on: put images into a "
                "domain of their own, with frames 1."
            )

    def __len__(self) -> int:
        return len(self.entries)

    def sample(self, index: int, kept: Collection[str], generator: torch.Generator) -> Sample:
        """See `training.data.sample.Clips`."""
        entry = self.entries[index]
        path = self.folder / entry.file
        with reading(str(path)):
            plan = None if entry.is_image else random_plan(probe(path), self.form.frames, self.rate, generator)
            made = make(pictures_of(path, plan), self.form, kept, generator)
            if "motion" in kept:
                made.conditions["motion"] = no_motion(self.form) if self.form.frames == 1 else self._motion(path, plan)
        text = entry.caption if "text" in kept else ""
        return Sample(
            entry.file, video=made.video, text=text, style=made.style, conditions=made.conditions, source=made.source
        )

    def _motion(self, path: Path, plan: FramePlan) -> Tensor:
        extraction, size = self.form.extraction, drawing_size("motion", self.form.size)
        layout, unit = extraction.motion_layout, extraction.motion_unit
        field = read_motion(path, plan, size, layout, unit, nominal_height=self.nominal_height).field[0]
        return self.form.fitted("motion", field)
