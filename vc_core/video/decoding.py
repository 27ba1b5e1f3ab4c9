"""Decoding of exactly the frames that are asked for: an index of the packets first, then the segments between
keyframes in parallel, each by a decoder of one thread."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any, NamedTuple

from ..errors import UserError
from .hdr import Colour
from .nal import Slices
from .opening import Media, opened, undecodable, unreadable
from .parallel import cores, in_order
from .showing import NO_COLOUR, SQUARE, pixel_aspect

SPLIT = frozenset({"h264", "hevc", "mpeg4", "mpeg2video", "flv", "vp8", "libvpx-vp9", "vp9", "libdav1d"})
"""Decoders whose keyframes were tested to stand by themselves; what others decode is one segment."""

TRANSPARENT = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""Decoders that leave out the alpha channel of WebM -> those that decode it, more slowly."""

WHOLE = frozenset({"mpeg4", "mpeg1video", "mpeg2video", "flv"})
"""Decoders that give a picture for every packet, but for one of a few bytes, which says: the same one again."""

FEW = 64  # bytes


# ---------------------------------------------------------------------------------------------------------------
# The index: which packets there are, before any is decoded
# ---------------------------------------------------------------------------------------------------------------


class Packet(NamedTuple):
    """A packet of the index; times in the stream's time base."""

    pts: int  # when its frame is shown
    mark: tuple  # what tells it from others when it is read again
    key: bool  # decoding can start here
    disposable: bool  # no other frame refers to it


@dataclass(frozen=True)
class Index:
    """The packets of a window of a stream, in decoding order, from a keyframe on.

    Attributes:
        packets: the window's; the first one is a keyframe.
        times: of their frames, in the order in which they are shown.
        start: of the window, in the stream's time base.
        end: where the stream ends, or None where it goes on beyond the window.
        timed: False where the packets carry no times, so that frames are counted.
        seek: where the first packet is sought; None for the stream's beginning.
        headless: packets before the first keyframe, which cannot be decoded.
        extradata: the codec's headers.
        aspect: a stored pixel's width over its height.
        colour: what the container says of it.
    """

    codec: str
    time_base: Fraction
    origin: int
    start: int
    step: int
    packets: tuple[Packet, ...]
    times: tuple[int, ...]
    end: int | None
    timed: bool
    seek: int | None
    headless: int
    extradata: bytes
    aspect: Fraction = SQUARE
    colour: Colour = NO_COLOUR

    @property
    def reordered(self) -> bool:
        """Frames are shown in another order than they are decoded in, as with B-frames."""
        return any(a.pts > b.pts for a, b in pairwise(self.packets))


def index(video: Media, start: float = 0.0, seconds: float | None = None) -> Index:
    """The packets of the frames shown from `start` on, for so many seconds (None: to the end). Decodes nothing.

    Raises UserError where the file cannot be read or holds no keyframe.
    """
    table = _read(video, start, seconds, before=float("inf"))
    # A keyframe may be decoded before `start` and be shown after it; some containers are sought inaccurately; and
    # what carries no times is counted from the beginning.
    while table.seek is not None and not (table.timed and table.packets and table.packets[0].pts <= table.start):
        earlier = table.packets[0].mark[1] if table.timed and table.packets else None
        table = _read(video, start, seconds, before=None if earlier is None or earlier > table.seek else earlier - 1)
    if not table.packets:
        raise unreadable(video, "it holds no keyframe, thus no picture that can be decoded")
    return table


def _read(video: Media, start: float, seconds: float | None, before: float | None) -> Index:
    """The index from the last keyframe before `start` and the time `before` on, or from the beginning (None)."""
    with opened(video) as (container, stream):
        origin, base = stream.start_time or 0, stream.time_base
        first = origin + int(start / base)
        until = None if seconds is None else first + int(seconds / base)
        step = max(1, int(1 / (stream.average_rate or 25) / base))
        codec, extradata = stream.codec_context.name, bytes(stream.codec_context.extradata or b"")
        aspect, colour = pixel_aspect(stream), Colour.of(stream)
        slices = Slices(codec, extradata)
        seek = None if before is None or min(first, before) <= origin else int(min(first, before))
        if seek is not None:
            container.seek(seek, stream=stream, backward=True)
        packets: list[Packet] = []
        headless, end, timed = 0, origin, True
        for packet in container.demux(stream):
            if not packet.size:
                continue
            if not packets and not packet.is_keyframe:
                headless += 1
                continue
            timed = timed and packet.pts is not None
            if not timed and seek is not None:
                break
            pts = packet.pts if timed else origin + len(packets) * step
            key, disposable = slices.of(packet)
            packets.append(Packet(pts, _mark(packet), key, disposable))
            end = max(end, pts + (packet.duration or step))
            # Later packets are shown later than this one is decoded; a time of decoding after that of showing is wrong.
            if until is not None and (min(pts, packet.dts) if timed and packet.dts is not None else pts) > until:
                end = None
                break
    if not timed:
        packets = [packet._replace(pts=origin + n * step) for n, packet in enumerate(packets)]
    # What is shown before the first keyframe refers to frames before it.
    times = sorted({packet.pts for packet in packets if packet.pts >= packets[0].pts})
    headless += sum(packet.pts < packets[0].pts for packet in packets)
    shown = tuple(packets), tuple(times)
    return Index(codec, base, origin, first, step, *shown, end, timed, seek, headless, extradata, aspect, colour)


def _mark(packet) -> tuple:
    return packet.pts, packet.dts, packet.size


# ---------------------------------------------------------------------------------------------------------------
# Segments: what one decoder decodes by itself
# ---------------------------------------------------------------------------------------------------------------


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
    split = table.codec in SPLIT and table.timed
    starts = [n for n, packet in enumerate(packets) if n == 0 or (split and packet.key)]
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


def _decoder(stream, vectors: bool, alone: bool):
    """The decoder of a stream, made ready before its first packet."""
    import av
    from av.codec.context import Flags2

    decoder = stream.codec_context
    better = TRANSPARENT.get(decoder.name)
    if better in av.codecs_available and stream.metadata.get("alpha_mode") == "1":
        options, decoder = decoder.options, av.CodecContext.create(better, "r")
        decoder.options = options
    # Not frame threads: they corrupt exported vectors; and they work on between calls, so where the host has
    # switched PyAV's logging on, a damaged file makes one of them wait for the interpreter's lock while closing the
    # file waits for it: a hang.
    decoder.thread_type = "SLICE" if alone else "NONE"
    if not alone:
        decoder.thread_count = 1
    if vectors:
        decoder.flags2 |= Flags2.export_mvs  # takes effect only before the first decode
        decoder.options = {**decoder.options, "skip_loop_filter": "all"}  # spoils the pictures, leaves the vectors
    return decoder


class _Missed(Exception):
    """A segment was not found where it was sought."""


def _packets(container, stream, table: Index, segment: Segment, seek: bool) -> Iterator:
    """(number in the index, packet) of a segment, read again. Raises _Missed before the first one."""
    first = table.packets[segment.first].mark
    if seek:
        container.seek(first[0] if first[1] is None else first[1], stream=stream, backward=True)
    number = segment.first
    for packet in container.demux(stream):
        if number == segment.first and _mark(packet) != first:
            if seek and None not in (packet.dts, first[1]) and packet.dts > first[1]:
                raise _Missed
            continue
        yield number, packet
        number += 1
        if number == segment.last:
            return
    if number == segment.first:
        raise _Missed


def _frames(video: Media, reader, table: Index, segment: Segment, seek: bool) -> Iterator[tuple[int, Any]]:
    """(wanted time, frame) for each wanted time of a segment."""
    import av

    container, stream, decoder = reader
    wanted, held, count = deque(segment.wanted), None, table.origin
    chosen = frozenset(segment.wanted)

    def again(time: int):
        """The frame before, which is shown on where a packet gave none."""
        lost = table.timed and table.codec in WHOLE
        if lost and any(p.pts == time and p.mark[2] > FEW for p in table.packets[segment.first : segment.last]):
            raise damaged(time)
        return held

    def damaged(time: int) -> UserError:
        return unreadable(video, f"its picture at {float(time * table.time_base):.2f} s is damaged")

    def decoded() -> Iterator:
        for number, packet in _packets(container, stream, table, segment, seek):
            entry = table.packets[number]
            if not entry.disposable or entry.pts in chosen or not table.timed:
                yield from decoder.decode(packet)
        yield from decoder.decode(None)

    try:
        if decoder.is_open:  # from an earlier segment
            decoder.flush_buffers()
        for frame in decoded():
            frame.time_base = table.time_base
            if not table.timed or frame.pts is None:
                frame.pts = count
            count = frame.pts + table.step
            if not segment.begin <= frame.pts < segment.end:
                continue
            if frame.is_corrupt:
                raise damaged(frame.pts)
            if held is not None and table.codec in WHOLE and _picture(frame) == _picture(held):
                continue  # given at the end, for a packet that held none
            while wanted and held is not None and frame.pts > wanted[0]:
                time = wanted.popleft()
                yield time, again(time)
            if wanted and frame.pts == wanted[0]:
                yield wanted.popleft(), frame
            if not wanted:
                return
            held = frame
    except av.FFmpegError as error:
        raise undecodable(video, decoder, error) from error
    if held is None:
        raise unreadable(video, f"no picture can be decoded from {float(segment.begin * table.time_base):.2f} s on")
    for time in wanted:
        yield time, again(time)


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
            return (container, stream, _decoder(stream, vectors, alone=workers == 0 or len(parts) == 1)), each()

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
                    except _Missed:
                        continue
                    idle.append(mine)
                    return
                raise unreadable(video, "its packets are not the same when they are read again")

            return run

        yield from in_order([task(segment) for segment in parts], workers)
