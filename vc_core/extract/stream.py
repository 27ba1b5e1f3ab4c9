"""The motion that a file already holds: its own block vectors at its own rate, followed along the frames that the plan
skips."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction

import numpy as np

from ..video.coded import references, sequence_headers
from ..video.decoding import decode
from ..video.opening import Media
from ..video.packets import Index
from ..video.showing import filtering
from .reencode import REENCODE, kind, reencoded
from .vectors import NONE, exported, to_cells

CELL = 8  # decoders export no smaller blocks
CODECS = {"h264": "H.264", "mpeg4": "MPEG-4 part 2", "mpeg2video": "MPEG-2", "flv": "FLV1"}
"""Decoders that export block vectors; the others, such as HEVC's, VP9's and AV1's, silently export none."""

TOGETHER = 32  # steps that are kept before they are followed and become one


class Obstacle(Exception):
    """Why a stream's own vectors do not tell the motion from each frame to the next."""


def obstacle(table: Index) -> str | None:
    """Why the stream's own vectors do not tell the motion, as far as its headers say; None where they may."""
    if table.codec not in CODECS:
        return f"{table.codec} gives no block vectors"
    if table.reordered:
        return "its frames refer to later ones (B-frames)"
    if any(packet.coded.disposable for packet in table.packets[:-1]):
        return "its frames do not always refer to the one before"
    if table.codec == "h264":
        try:
            headers = [references(header) for header in sequence_headers(table.extradata)]
        except (ValueError, IndexError):
            headers = []
        if not headers:
            return "its headers do not say which frames are referred to"
        if any(frames > 1 for frames, _ in headers):
            return "its frames may refer to others than the one before"
        if not all(whole for _, whole in headers):
            return "it is interlaced"
    return None


def own_rows(video: Media, table: Index, times: Sequence[int]) -> Iterator[tuple[int, str, np.ndarray]]:
    """(time, kind, VECTOR rows) of the stream's frames at `times`, in order, exact.

    Raises Obstacle at a frame whose vectors are not from the one before, UserError for a damaged file.
    """
    for time, frame in decode(video, table, times, vectors=True):
        letter = kind(frame)
        if letter not in "IP":
            raise Obstacle(f"some of its frames refer to others than the one before ({letter}-frames)")
        if frame.interlaced_frame:
            raise Obstacle("it is interlaced")
        # Where the stream says that the frame before is shown on, its vectors have been told.
        yield (time, letter, exported(frame)) if frame.pts == time else (time, "P", NONE)


def own_steps(video: Media, table: Index, times: Sequence[int], source: tuple[int, int]) -> Iterator[np.ndarray]:
    """The grid (2, rows, columns) of each frame of `times` after the first: displacements since the one before.

    Across an I-frame, which has no vectors, the two pictures are encoded for theirs.
    """
    before = dict(zip(times[1:], times, strict=False))
    for time, letter, rows in own_rows(video, table, times[1:]):
        if letter == "I":
            rows = _between(video, table, before[time], time)
        yield closed(to_cells(rows, source, CELL))


def _between(video: Media, table: Index, *times: int) -> np.ndarray:
    """The VECTOR rows from one frame to another, both decoded and encoded anew."""
    settings = REENCODE["dense"]
    run = filtering(video, settings.filters, None, table.colour)
    frames = (run(frame) for _, frame in decode(video, table, times))
    return list(reencoded(frames, Fraction(25), 2, settings))[1][1]


def encoded_steps(
    frames: Iterable, rate: Fraction, count: int, source: tuple[int, int], what: object = "The video"
) -> Iterator[np.ndarray]:
    """As `own_steps`, from frames (yuv420p, even sizes) that are encoded anew, at their own rate."""
    found = reencoded(frames, rate, count, REENCODE["steps"], what)
    next(found)
    for _, rows in found:
        yield closed(to_cells(rows, source, CELL))


def closed(grid: np.ndarray, rings: int = 8) -> np.ndarray:
    """The grid with its holes, blocks coded without reference, filled from around them, so many cells far; else zero.

    Each hole takes the mean of its known neighbours, ring by ring.
    """
    for _ in range(rings):
        known = ~np.isnan(grid[0])
        if known.all() or not known.any():
            break
        counts, sums = _neighbours(known.astype(np.float32)[None]), _neighbours(np.nan_to_num(grid))
        new = ~known & (counts[0] > 0)
        grid = np.where(new, sums / np.maximum(counts, 1), grid)
    return np.nan_to_num(grid)


def _neighbours(grid: np.ndarray) -> np.ndarray:
    """The sum over each cell's 3 x 3 neighbourhood."""
    padded = np.pad(grid, ((0, 0), (1, 1), (1, 1)))
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    return rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]


def follow(steps: Sequence[np.ndarray]) -> np.ndarray:
    """The displacements (2, rows, columns) over several steps, at the cells of the last frame.

    Each cell's content is followed backwards to where it was a frame before, and the vector found there added: what
    a fixed place saw passing by is not summed. Content that came from outside keeps the border's motion.
    """
    _, rows, columns = steps[-1].shape
    y, x = (np.mgrid[:rows, :columns].astype(np.float32) + 0.5) * CELL
    total = np.zeros_like(steps[-1])
    for step in reversed(steps):
        at_y = np.floor((y - total[1]) / CELL).astype(np.intp).clip(0, rows - 1)
        at_x = np.floor((x - total[0]) / CELL).astype(np.intp).clip(0, columns - 1)
        total = total + step[:, at_y, at_x]
    return total


def between_ticks(steps: Iterator[np.ndarray], counts: Iterable[int]) -> Iterator[np.ndarray | None]:
    """One grid for each count: so many steps, followed; None for no steps. Memory does not grow with the count."""
    for count in counts:
        kept: list[np.ndarray] = []
        for _ in range(count):
            if len(kept) == TOGETHER:
                kept = [follow(kept)]
            kept.append(next(steps))
        yield follow(kept) if kept else None
