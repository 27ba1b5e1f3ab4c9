"""The list of clips for `./vc prepare`, the report, and the contact sheet of dropped clips."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from training.data.caption_lists import CAPTION, END, FILE, START, named_in, printable
from training.data.cleaning.rules import REASONS, Result
from training.data.cleaning.scenes import Clip, shrinking
from training.data.sample import BadSample
from training.data.sample_fields import reading
from vc_core.disk import written_beside
from vc_core.video import every_frame, probe

REPORT, SHEET = ".report.json", ".dropped.png"
"""Endings that replace the list's `.csv` for the other files."""

COLUMNS, MOST = 6, 24  # clips in a row of the sheet, and of one reason
CELL, GAP, TEXT = (180, 120), 10, 13  # pixels: (width, height) of a frame, space, height of letters


# --- The list and the report ----------------------------------------------------------------------------------------


def write_list(path: Path, results: Sequence[Result], captions: Sequence[str]) -> None:
    """Write the clips that remain as CSV: file, start, end, caption, and the columns of their original list."""
    others = [_other_columns(result) for result in results]
    names = list(dict.fromkeys(name for row in others for name in row))
    # File names that are not UTF-8 are read back as they are.
    with written_beside(path) as part, open(part, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow([FILE[0], START, END, CAPTION[0], *names])
        for result, caption, row in zip(results, captions, others, strict=True):
            span = f"{result.clip.start:.6f}", f"{result.clip.end:.6f}"
            writer.writerow([result.entry.file, *span, caption, *(row.get(name, "") for name in names)])


def _other_columns(result: Result) -> dict[str, str]:
    """Other columns of the original list, as text. The clip's own span replaces that of the list."""
    others = result.entry.others
    replaced = {named_in(others, [name]) for name in (START, END)}
    return {
        printable(name): printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for name, value in others.items()
        if name not in replaced
    }


def write_report(path: Path, summary: Mapping[str, Any], results: Sequence[Result]) -> None:
    """Write a JSON with the summary, and every clip with its figures."""
    clips = [_row(result) for result in results]
    with written_beside(path) as part:
        part.write_text(json.dumps({**summary, "clips": clips}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _row(result: Result) -> dict[str, Any]:
    row: dict[str, Any] = {"file": printable(result.entry.file), "dropped": result.dropped}
    if result.reason:
        row |= {"reason": result.reason, "detail": printable(result.detail)}
    if clip := result.clip:
        change = None if clip.change is None else round(clip.change, 3)
        hashes = [f"{number:016x}" for number in clip.hashes]
        row |= {"start": clip.start, "end": clip.end, "frames": clip.frames, "scene": clip.scene}
        row |= {"change": change, "bars": round(clip.bars, 4), "hashes": hashes}
    return row


# --- The contact sheet ----------------------------------------------------------------------------------------------


def middle_frame(source: Path, name: str, clip: Clip, side: int) -> Image.Image:
    """The frame in the middle of a clip, at most `side` pixels long.

    Raises:
        BadSample: it cannot be read.
    """
    with reading(name, Exception):  # see `_small_frames`
        filters = *shrinking(probe(source), side), ("format", "rgb24")
        for start in ((clip.start + clip.end) / 2, clip.start):  # after the middle there may be no frame
            for _, frame in every_frame(source, *filters, start=start, end=clip.end):
                return Image.fromarray(frame.to_ndarray())
    raise BadSample(f"{name} has no frame between {clip.start:g} and {clip.end:g} s.")


def write_sheet(path: Path, results: Sequence[Result], folder: Path) -> None:
    """Write a PNG with the middle frames of dropped clips and why they were dropped, at most `MOST` for each reason."""
    from PIL import ImageDraw, ImageFont

    font, line = ImageFont.load_default(TEXT), TEXT + 4
    cell_width, cell_height = CELL[0] + GAP, CELL[1] + 5 * line + GAP
    groups = {
        reason: [result for result in results if result.dropped and result.reason == reason] for reason in REASONS
    }
    groups = {reason: group for reason, group in groups.items() if group}
    rows = sum(-(-min(len(group), MOST) // COLUMNS) for group in groups.values())
    height = GAP + max(1, len(groups)) * 2 * line + rows * cell_height
    sheet = Image.new("RGB", (GAP + COLUMNS * cell_width, height), "white")
    draw, top = ImageDraw.Draw(sheet), GAP
    if not groups:
        draw.text((GAP, top), "Nothing was dropped.", "black", font)
    for reason, group in groups.items():
        more = f"; the first {MOST} of them" if len(group) > MOST else ""
        draw.text((GAP, top), f"{reason}: {len(group)} ({REASONS[reason]}){more}", "black", font)
        top += 2 * line
        for number, result in enumerate(group[:MOST]):
            x, y = GAP + number % COLUMNS * cell_width, top + number // COLUMNS * cell_height
            _draw_frame(sheet, draw, result, folder, (x, y))
            for row, text in enumerate(_lines(result, folder, font)):
                draw.text((x, y + CELL[1] + row * line), text, "black", font)
        top += -(-len(group[:MOST]) // COLUMNS) * cell_height
    with written_beside(path) as part:
        sheet.save(part)


def _draw_frame(sheet: Image.Image, draw: Any, result: Result, folder: Path, corner: tuple[int, int]) -> None:
    """Draw a clip's frame, or a cross if it has none, on grey, which shows black bars."""
    x, y = corner
    box = (x, y, x + CELL[0] - 1, y + CELL[1] - 1)
    draw.rectangle(box, "#d0d0d0")
    try:
        if result.clip is None:
            raise BadSample("no frame")
        frame = middle_frame(result.entry.source(folder), result.entry.name(folder), result.clip, max(CELL))
    except BadSample:
        draw.line(box, "#909090", 2)
        draw.line((box[0], box[3], box[2], box[1]), "#909090", 2)
        return
    frame.thumbnail(CELL)
    sheet.paste(frame, (x + (CELL[0] - frame.width) // 2, y + (CELL[1] - frame.height) // 2))


def _lines(result: Result, folder: Path, font: Any) -> list[str]:
    """The file, the seconds and the detail, in five lines as wide as a frame."""
    span = f"{result.clip.start:.2f} to {result.clip.end:.2f} s" if result.clip else ""
    lines = [printable(result.entry.file), *([span] if span else [])]
    lines = [_fitted(line, font) for line in lines]
    words = printable(result.detail.replace(f"{folder}{os.sep}", "")).split()
    while words and len(lines) < 5:
        count = max((n for n in range(1, len(words) + 1) if _fits(" ".join(words[:n]), font)), default=1)
        text, words = " ".join(words[:count]), words[count:]
        lines.append(_fitted(f"{text} ..." if words and len(lines) == 4 else text, font))
    return lines


def _fits(text: str, font: Any) -> bool:
    return font.getlength(text) <= CELL[0]


def _fitted(text: str, font: Any) -> str:
    """The text, shortened in its middle to the width of a frame."""
    shown, half = text, len(text)
    while not _fits(shown, font) and half > 1:
        half -= 1
        shown = f"{text[: half // 2]}...{text[-(half - half // 2) :]}"
    return shown
