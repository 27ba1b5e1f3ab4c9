"""Decoding of exactly the frames that are asked for: the segments between keyframes in parallel, each by a decoder of
one thread."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from .opening import Media, opened, undecodable, unreadable
from .packets import CHANGED, FEW, NEVER, SPLIT, WHOLE, Index, Missed, again, decoded, decoder, number_of
from .parallel import cores, in_order


@dataclass(frozen=True)
class Segment:
    """Packets `first` to `last` (exclusive) of an index, whose frames shown in [begin, end) are asked for `wanted`.

    The packets go beyond the next keyframe where frames that are shown before it follow it (open groups of pictures).
    """

    first: int
    last: int
    begin: int
    end: float
    wanted: tuple[int, ...]


def segments(table: Index, wanted: Sequence[int]) -> list[Segment]:
    """The segments that hold some of the `wanted` times (ascending), in order."""
    packets = table.packets
    split = table.codec in SPLIT
    starts = [n for n, packet in enumerate(packets) if n == 0 or (split and packet.key and packet.pts != NEVER)]
    if not table.sought:  # what is read from the beginning is read once
        starts = [max((n for n in starts if packets[n].pts <= wanted[0]), default=0)] if wanted else []
    found = []
    for first, following in zip(starts, [*starts[1:], None], strict=True):
        begin, end, last = packets[first].pts, float("inf"), len(packets)
        if following is not None:
            end, last = packets[following].pts, following
            leading = following + 1
            while leading < len(packets) and packets[leading].pts < end:
                last = leading = leading + 1
        mine = tuple(wanted[bisect_left(wanted, begin) : bisect_left(wanted, end)])
        if mine:
            found.append(Segment(first, last, begin, end, mine))
    return found


def _frames(video: Media, reader, table: Index, segment: Segment, seek: bool) -> Iterator[tuple[int, Any]]:
    """(wanted time, frame) for each wanted time of a segment."""
    import av

    container, stream, context = reader
    wanted, held = deque(segment.wanted), None
    chosen = frozenset(segment.wanted)

    def shown_on(time: int):
        """The frame before, which is shown on where a packet gave none."""
        whole = table.codec in WHOLE
        if whole and any(p.pts == time and p.mark[2] > FEW for p in table.packets[segment.first : segment.last]):
            raise damaged(time)
        return held

    def damaged(time: int) -> UserError:
        return unreadable(video, f"its picture at {float(time * table.time_base):.2f} s is damaged")

    def given() -> Iterator:
        for number, packet in again(container, stream, table, segment.first, segment.last, seek):
            entry = table.packets[number]
            if not entry.disposable or entry.pts in chosen or entry.pts == NEVER:
                yield from decoded(context, packet)
        yield from context.decode(None)

    try:
        if context.is_open:  # from an earlier segment
            context.flush_buffers()
        for frame in given():
            number = number_of(frame)
            time = frame.pts if number is None else table.packets[number].pts  # which was checked
            if time is None or not segment.begin <= time < segment.end:
                continue
            frame.time_base, frame.pts = table.time_base, time
            if frame.is_corrupt:
                raise damaged(frame.pts)
            if held is not None and table.codec in WHOLE and _picture(frame) == _picture(held):
                continue  # given at the end, for a packet that held none
            while wanted and held is not None and frame.pts > wanted[0]:
                time = wanted.popleft()
                yield time, shown_on(time)
            if wanted and frame.pts == wanted[0]:
                yield wanted.popleft(), frame
            if not wanted:
                return
            held = frame
    except av.FFmpegError as error:
        raise undecodable(video, context, error) from error
    if held is None:
        raise unreadable(video, f"no picture can be decoded from {float(segment.begin * table.time_base):.2f} s on")
    for time in wanted:
        yield time, shown_on(time)


def _picture(frame) -> int:
    """Where a frame's picture lies; frames that exist at the same time share it where they show the same one."""
    return frame.planes[0].buffer_ptr


def decode(
    video: Media,
    table: Index,
    wanted: Sequence[int],
    each: Callable[[], Callable[[Any], tuple[Any, int]]],
    vectors: bool = False,
    workers: int | None = None,
) -> Iterator[tuple[int, Any]]:
    """(time, what `each` makes of its frame) for every wanted time, in order; segments are decoded in parallel.

    Args:
        wanted: some of the index's times, ascending.
        each: called once a decoder; returns a function from an av.VideoFrame to (result, its bytes), which runs
            beside the decoder.
        vectors: export block vectors, exactly; the frames' pictures are not to be used then.
        workers: decoders that run beside the caller (default: a core each, at most 8; none on one core). The results
            do not depend on it.

    Raises UserError where the file cannot be read or its frames are damaged.
    """
    parts = segments(table, wanted)
    workers = min((cores() if cores() > 1 else 0) if workers is None else workers, 8, len(parts))
    with ExitStack() as stack:
        idle: deque = deque()

        def reader() -> tuple:
            container, stream = stack.enter_context(opened(video))
            return (container, stream, decoder(stream, vectors, alone=workers == 0 or len(parts) == 1)), each()

        def task(segment: Segment) -> Callable[[], Iterator]:
            from_start = segment.first == 0 and table.seek is None

            def run() -> Iterator[tuple[tuple[int, Any], int]]:
                # Where seeking is inaccurate, the segment is read from the beginning, by a decoder that never sought.
                for seek in (False,) if from_start else (True, False):
                    try:
                        mine = idle.pop() if seek else reader()
                    except IndexError:
                        mine = reader()
                    try:
                        for time, frame in _frames(video, mine[0], table, segment, seek):
                            result, size = mine[1](frame)
                            yield (time, result), size
                    except Missed:
                        continue
                    idle.append(mine)
                    return
                raise unreadable(video, CHANGED)

            return run

        yield from in_order([task(segment) for segment in parts], workers)
