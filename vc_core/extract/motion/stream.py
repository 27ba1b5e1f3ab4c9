"""The motion in a file: its own block vectors at its own rate, added up along the frames that the plan skips.
If they are not usable, the file is re-encoded at its own rate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from fractions import Fraction
from itertools import chain, pairwise

import numpy as np
import torch
from torch import Tensor

from ...progress import Progress
from ...video.coded import references, sequence_headers
from ...video.decoding import decode
from ...video.frames import pictures
from ...video.opening import Media
from ...video.packets import Index
from ...video.showing import Picture, filtering, stored_picture
from .clip import Clip
from .reencode import REENCODE, reencoded
from .vectors import NONE, BlockMeans, CellMap, PointMap, exported, fill, to_cells

CELL = 8  # side of the smallest blocks that decoders export
CODECS = ("h264", "mpeg4", "mpeg2video", "flv")
"""Decoders that export block vectors; others, such as HEVC's, VP9's and AV1's, silently export none."""

TOGETHER = 32  # number of steps in memory before they are merged into one


class Obstacle(Exception):
    """Why a stream's own vectors do not give the motion from each frame to the next."""


def stream_field(
    clip: Clip, size: tuple[int, int], layout: str, nominal_height: int | None, progress: Progress | None
) -> tuple[Tensor, str | None]:
    """Return the motion field (1, 2, F, h, w) of a clip at `size` (h, w), in the layout's unit, and why it does not use
    the file's own vectors, or None if it does. Raises `UserError` if the clip cannot be decoded or re-encoded."""
    settings, table = REENCODE["steps"], clip.table
    times = [*clip.times] if table is None else [at for at in table.times if clip.times[0] <= at <= clip.times[-1]]
    position = {time: number for number, time in enumerate(times)}
    counts = [position[b] - position[a] for a, b in pairwise(clip.times)]

    def draw(steps: Iterator[np.ndarray], picture: Picture, shown: tuple[int, int]) -> Tensor:
        maps = _along(steps, counts, picture, shown, size, layout)
        return fill(_reported(maps, clip.plan.frames, progress), clip.plan.frames, size)

    try:
        if reason := obstacle(table):
            raise Obstacle(reason)
        picture = stored_picture(clip.video)
        return draw(
            own_steps(clip.video, table, times, picture.size), picture, _at(nominal_height, picture.shown)
        ), None
    except Obstacle as error:
        why = str(error)
    rate, filters = clip.plan.rate, settings.filters(nominal_height)
    if table is None:
        frames = clip.shown(filters)
    else:
        rate = Fraction(max(1, round(1 / (table.step * table.time_base))))
        frames = pictures(clip.video, table, times, filters)
    first = next(frames)
    source = first.height, first.width
    vectors = reencoded(chain([first], frames), rate, sum(counts) + 1, settings, clip.name)
    with closing(vectors):
        next(vectors)  # of the first frame, which has no previous frame
        steps = (holes_filled(to_cells(rows, source, CELL)) for rows in vectors)
        return draw(steps, Picture(source, source), source), why


def _at(nominal_height: int | None, shown: tuple[int, int]) -> tuple[int, int]:
    """The (height, width) after the filters for a nominal height, of a frame displayed at `shown`."""
    if nominal_height is None:
        return shown
    height = nominal_height // 2 * 2
    return height, 2 * round(height * shown[1] / shown[0] / 2)


def _reported(maps: Iterable, frames: int, progress: Progress | None) -> Iterator:
    for number, item in enumerate(maps, 1):
        yield item
        if progress is not None:
            progress("motion", number, frames)


def _along(
    steps: Iterator[np.ndarray],
    counts: list[int],
    picture: Picture,
    shown: tuple[int, int],
    size: tuple[int, int],
    layout: str,
) -> Iterator[Tensor]:
    """Yield the maps (2, h, w) of the plan's frames, the first of them zeros. `counts`: stream steps per frame.

    The steps belong to the frame as stored; the maps to the frame at the size `shown`, upright.
    """
    turn = picture.turn
    source, backward = turn.axes(picture.size), (turn.rows, turn.columns)
    dense = CellMap(source, size, CELL, shown, backward)
    points, blocks = PointMap(shown, size), BlockMeans(source, shown, CELL, backward)
    down, right = (
        (-to if reverse else to) / length for to, reverse, length in zip(shown, backward, source, strict=True)
    )
    scale = np.array([right, down], np.float32).reshape(2, 1, 1)
    yield torch.zeros(2, *size)
    for grid in summed_between_frames(steps, counts):
        if grid is None:
            yield torch.zeros(2, *size)
            continue
        grid = np.ascontiguousarray((grid[::-1].swapaxes(1, 2) if turn.transposed else grid) * scale)
        yield dense.spread(grid) * dense.scale if layout == "dense" else points(blocks(grid))


def obstacle(table: Index | None) -> str | None:
    """Return why the stream's own vectors are not usable, from its headers; None if they may be usable."""
    if table is None:
        return "a batch of frames has no vectors"
    if table.codec not in CODECS:
        return f"the {table.codec} decoder exports no motion vectors"
    if table.reordered:
        return "its frames refer to later ones (B-frames)"
    if any(packet.coded.disposable for packet in table.packets[:-1]):
        return "its frames do not always refer to the previous one"
    if table.codec == "h264":
        try:
            headers = [references(header) for header in sequence_headers(table.extradata)]
        except (ValueError, IndexError):
            headers = []
        if not headers:
            return "its headers do not say which frames its vectors refer to"
        if any(frames > 1 for frames, _ in headers):
            return "its frames may refer to other frames than the previous one"
        if not all(progressive for _, progressive in headers):
            return "it is interlaced"
    return None


def own_rows(video: Media, table: Index, times: Sequence[int]) -> Iterator[tuple[int, str, np.ndarray]]:
    """Yield (time, kind, VECTOR rows) of exactly the stream's frames at `times`, in order.

    Raises Obstacle at a frame whose vectors do not refer to the previous frame, UserError for a damaged file.
    """
    import av

    for time, frame in decode(video, table, times, vectors=True):
        letter = av.video.frame.PictureType(frame.pict_type).name
        if letter not in "IP":
            raise Obstacle(f"some of its frames refer to other frames than the previous one ({letter}-frames)")
        if frame.interlaced_frame:
            raise Obstacle("it is interlaced")
        # If the stream repeats the previous frame, its vectors were already yielded.
        yield (time, letter, exported(frame)) if frame.pts == time else (time, "P", NONE)


def own_steps(video: Media, table: Index, times: Sequence[int], source: tuple[int, int]) -> Iterator[np.ndarray]:
    """The grid (2, rows, columns) of each frame of `times` after the first: displacements since the previous frame.

    An I-frame has no vectors: the two frames are decoded and re-encoded to get them.
    """
    settings, before = REENCODE["dense"], dict(pairwise(times[::-1]))
    for time, letter, rows in own_rows(video, table, times[1:]):
        if letter == "I":
            run = filtering(video, settings.filters(), None, table.colour)
            pair = (run(frame) for _, frame in decode(video, table, (before[time], time)))
            _, rows = reencoded(pair, Fraction(25), 2, settings)
        yield holes_filled(to_cells(rows, source, CELL))


def holes_filled(grid: np.ndarray, rings: int = 8) -> np.ndarray:
    """Fill the grid's holes (blocks coded without reference) from up to `rings` cells around them, else with zeros.

    Each hole gets the mean of its known neighbours, ring by ring.
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

    Each cell's content is followed backwards to its position in the previous frame, and the vector there is added. So
    content that only passes a fixed position is not summed. Content from outside keeps the border's motion.
    """
    _, rows, columns = steps[-1].shape
    y, x = (np.mgrid[:rows, :columns].astype(np.float32) + 0.5) * CELL
    total = np.zeros_like(steps[-1])
    for step in reversed(steps):
        at_y = np.floor((y - total[1]) / CELL).astype(np.intp).clip(0, rows - 1)
        at_x = np.floor((x - total[0]) / CELL).astype(np.intp).clip(0, columns - 1)
        total = total + step[:, at_y, at_x]
    return total


def summed_between_frames(steps: Iterator[np.ndarray], counts: Iterable[int]) -> Iterator[np.ndarray | None]:
    """Yield one grid per count: that many steps, merged; None for 0. Memory does not grow with the count."""
    for count in counts:
        pending: list[np.ndarray] = []
        for _ in range(count):
            if len(pending) == TOGETHER:
                pending = [follow(pending)]
            pending.append(next(steps))
        yield follow(pending) if pending else None
