"""Decode exactly the requested frames, each from the keyframe before it."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from .opening import Media, undecodable, unreadable
from .packets import FEW, NEVER, ONE_PER_PACKET, SPLIT, Index, Packet, Reader, number_of


@dataclass(frozen=True)
class Segment:
    """Packets `first` to `last` (exclusive) of an index, and the requested times of their frames in [begin, end).

    The packets continue after the next keyframe if frames shown before it follow it (open groups of pictures).
    """

    first: int
    last: int
    begin: int
    end: float
    times: tuple[int, ...]


def segments(table: Index, times: Sequence[int]) -> list[Segment]:
    """The segments that contain the requested `times` (ascending), in order."""
    packets = table.packets
    split = table.codec in SPLIT
    starts = [n for n, packet in enumerate(packets) if n == 0 or (split and packet.coded.key and packet.time != NEVER)]
    if not table.seekable:  # read once from the beginning
        starts = [max((n for n in starts if packets[n].time <= times[0]), default=0)] if times else []
    result = []
    for first, following in zip(starts, [*starts[1:], None], strict=True):
        begin, end, last = packets[first].time, float("inf"), len(packets)
        if following is not None:
            end, last = packets[following].time, following
            leading = following + 1
            while leading < len(packets) and packets[leading].time < end:
                last = leading = leading + 1
        inside = tuple(times[bisect_left(times, begin) : bisect_left(times, end)])
        if inside:
            result.append(Segment(first, last, begin, end, inside))
    return result


def decode(video: Media, table: Index, times: Sequence[int], vectors: bool = False) -> Iterator[tuple[int, Any]]:
    """Yield (time, the av.VideoFrame shown then) for each requested time: some of the index's times, ascending.

    `vectors`: export exact block vectors; do not use the frames' pixels then. Raises UserError if the file cannot be
    read or its frames are damaged.
    """
    import av

    with Reader(video, table, vectors) as reader:
        for segment in segments(table, times):
            try:
                yield from _frames(reader, segment)
            except av.FFmpegError as error:
                raise undecodable(video, reader.context, error) from error


def _frames(reader: Reader, segment: Segment) -> Iterator[tuple[int, Any]]:
    """Yield (time, frame) for each requested time of a segment."""
    video, table, pending, previous = reader.video, reader.table, deque(segment.times), None
    strict, requested = table.codec in ONE_PER_PACKET, frozenset(pending)

    def damaged(time: int) -> UserError:
        return unreadable(video, f"the frame at {float(time * table.time_base):.2f} s is damaged")

    def repeated(time: int):
        """The previous frame, which stays visible if a packet produced no frame."""
        if strict and any(p.time == time and p.size > FEW for p in table.packets[segment.first : segment.last]):
            raise damaged(time)
        return previous

    def needed(packet: Packet) -> bool:
        return not packet.coded.disposable or packet.time in requested or packet.time == NEVER

    for frame in reader.frames(segment.first, segment.last, needed):
        number = number_of(frame)
        time = frame.pts if number is None else table.packets[number].time  # the checked time
        if time is None or not segment.begin <= time < segment.end:
            continue
        frame.time_base, frame.pts = table.time_base, time
        if frame.is_corrupt:
            raise damaged(time)
        if previous is not None and strict and _address(frame) == _address(previous):
            continue  # output again at the end, for a packet without a picture
        while pending and previous is not None and time > pending[0]:
            yield pending[0], repeated(pending.popleft())
        if pending and time == pending[0]:
            yield pending.popleft(), frame
        if not pending:
            return
        previous = frame
    if previous is None:
        raise unreadable(video, f"no frame can be decoded from {float(segment.begin * table.time_base):.2f} s on")
    for time in pending:
        yield time, repeated(time)


def _address(frame) -> int:
    """The memory address of a frame's pixels; frames that exist at the same time share it if they are the same."""
    return frame.planes[0].buffer_ptr
