"""Decoding of exactly the frames that are asked for, from the keyframe before each of them."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from .opening import Media, undecodable, unreadable
from .packets import FEW, NEVER, SPLIT, WHOLE, Index, Packet, Reader, number_of


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
    starts = [n for n, packet in enumerate(packets) if n == 0 or (split and packet.coded.key and packet.time != NEVER)]
    if not table.sought:  # what is read from the beginning is read once
        starts = [max((n for n in starts if packets[n].time <= wanted[0]), default=0)] if wanted else []
    found = []
    for first, following in zip(starts, [*starts[1:], None], strict=True):
        begin, end, last = packets[first].time, float("inf"), len(packets)
        if following is not None:
            end, last = packets[following].time, following
            leading = following + 1
            while leading < len(packets) and packets[leading].time < end:
                last = leading = leading + 1
        mine = tuple(wanted[bisect_left(wanted, begin) : bisect_left(wanted, end)])
        if mine:
            found.append(Segment(first, last, begin, end, mine))
    return found


def decode(video: Media, table: Index, wanted: Sequence[int], vectors: bool = False) -> Iterator[tuple[int, Any]]:
    """(time, av.VideoFrame that is shown then) for every wanted time, some of the index's, ascending.

    `vectors`: export block vectors, exactly; the frames' pictures are not to be used then. Raises UserError where the
    file cannot be read or its frames are damaged.
    """
    import av

    with Reader(video, table, vectors) as reader:
        for segment in segments(table, wanted):
            try:
                yield from _frames(reader, segment)
            except av.FFmpegError as error:
                raise undecodable(video, reader.context, error) from error


def _frames(reader: Reader, segment: Segment) -> Iterator[tuple[int, Any]]:
    """(wanted time, frame) for each wanted time of a segment."""
    video, table, wanted, held = reader.video, reader.table, deque(segment.wanted), None
    whole, chosen = table.codec in WHOLE, frozenset(wanted)

    def damaged(time: int) -> UserError:
        return unreadable(video, f"its picture at {float(time * table.time_base):.2f} s is damaged")

    def shown_on(time: int):
        """The frame before, which is shown on where a packet gave none."""
        if whole and any(p.time == time and p.size > FEW for p in table.packets[segment.first : segment.last]):
            raise damaged(time)
        return held

    def needed(packet: Packet) -> bool:
        return not packet.coded.disposable or packet.time in chosen or packet.time == NEVER

    for frame in reader.frames(segment.first, segment.last, needed):
        number = number_of(frame)
        time = frame.pts if number is None else table.packets[number].time  # which was checked
        if time is None or not segment.begin <= time < segment.end:
            continue
        frame.time_base, frame.pts = table.time_base, time
        if frame.is_corrupt:
            raise damaged(time)
        if held is not None and whole and _picture(frame) == _picture(held):
            continue  # given at the end, for a packet that held none
        while wanted and held is not None and time > wanted[0]:
            yield wanted[0], shown_on(wanted.popleft())
        if wanted and time == wanted[0]:
            yield wanted.popleft(), frame
        if not wanted:
            return
        held = frame
    if held is None:
        raise unreadable(video, f"no picture can be decoded from {float(segment.begin * table.time_base):.2f} s on")
    for time in wanted:
        yield time, shown_on(time)


def _picture(frame) -> int:
    """Where a frame's picture lies; frames that exist at the same time share it where they show the same one."""
    return frame.planes[0].buffer_ptr
