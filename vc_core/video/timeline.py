"""When each picture of a stream is shown, and how many there are: the one place where what a container says about its
pictures is checked, against what the pictures themselves and their decoder say."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate, chain, islice, pairwise
from typing import NamedTuple

from .coded import Coded, reader
from .hdr import Colour
from .limits import FASTEST
from .opening import Media, opened, unreadable
from .packets import (
    CHANGED,
    FEW,
    NEVER,
    SPLIT,
    WHOLE,
    Index,
    Missed,
    Packet,
    again,
    decoded,
    decoder,
    demuxed,
    mark,
    number_of,
)
from .showing import pixel_aspect

DELAY = 33
"""Packets that come at most before one that is shown earlier, and one more: H.264 and HEVC allow 16 pictures, each of
which may be two fields."""

UNKNOWN = 25  # frames a second, where nothing tells
MOST = 240  # frames a second that a codec's headers are believed


class _Row(NamedTuple):
    """A packet as the container gives it, and what it says of itself."""

    pts: int | None
    dts: int | None
    duration: int
    hidden: bool  # decoded, but not shown: before the cut of an edit list
    mark: tuple
    coded: Coded


@dataclass(frozen=True)
class _Clock:
    """Where times come from.

    Attributes:
        origins: field of a row ("pts", or "dts", which tells when it is decoded) -> when the stream's first picture
            is shown; empty where nothing tells, and frames are counted.
        rate: frames a second, for counting.
        base: the time base.
        first: field -> the stream's first times, in the order of decoding.
        decoding: the format stores when pictures are decoded alone; libavformat makes up when they are shown.
    """

    origins: dict[str, int]
    rate: Fraction
    base: Fraction
    first: dict[str, Sequence[int | None]]
    decoding: bool

    @property
    def field(self) -> str | None:
        return next(iter(self.origins), None)

    @property
    def origin(self) -> int:
        return next(iter(self.origins.values()), 0)

    def at(self, count: int) -> int:
        """The time of a picture after so many others, at the stream's rate."""
        return round(count / self.rate / self.base)

    def time(self, row: _Row, count: int) -> int | None:
        return getattr(row, self.field) if self.field else self.at(count)


def _clock(container, stream, packets: Iterator) -> tuple[_Clock, list]:
    """The clock of a stream, and the first of its packets, which were read for it."""
    from av.format import Flags

    rate, coded = Fraction(stream.average_rate or stream.guessed_rate or UNKNOWN), _coded_rate(stream)
    head = list(islice(packets, DELAY if stream.codec_context.has_b_frames or rate > FASTEST else 1))
    # Where a format stores no times, what libavformat gives for them is made up, at 25 frames a second.
    counted = bool(container.format.flags & Flags.no_timestamps.value)
    # Such as times before zero in Matroska: those that follow do not tell when the stream begins.
    counted = counted or (bool(head) and head[0].pts is None and head[0].dts is None)
    origins, first = {}, {field: [getattr(packet, field) for packet in head] for field in ("pts", "dts")}
    for field in ("pts", "dts"):
        times = [time for packet in head if not packet.is_discard and (time := getattr(packet, field)) is not None]
        if times:
            origins[field] = min(times)
            # Such as in an AVI file of a wrong rate, which is all that it has of a clock.
            hasty = len(times) > 2 and (len(times) - 1) > (max(times) - min(times)) * stream.time_base * FASTEST
            counted = counted or (hasty and coded is not None)
    origins, rate = ({}, coded or rate) if counted else (origins, rate)
    return _Clock(origins, rate, stream.time_base, first, container.format.name in ("avi", "asf")), head


def _coded_rate(stream) -> Fraction | None:
    """Frames a second as the codec's own headers say; some only tell the ticks of their clock, which are too many."""
    for rate in (stream.codec_context.framerate, stream.guessed_rate):
        if rate and 1 <= rate <= MOST:
            return Fraction(rate)
    return None


# ---------------------------------------------------------------------------------------------------------------
# The index: which packets there are, and when their pictures are shown
# ---------------------------------------------------------------------------------------------------------------


def index(video: Media, start: float = 0.0, seconds: float | None = None) -> Index:
    """The packets of the frames shown from `start` on, for so many seconds (None: to the end).

    Nothing is decoded where the packets' times can be those of their pictures. Otherwise, as with B-frames in AVI,
    which stores no times, the window is decoded for the order in which its pictures are shown.

    Raises UserError where the file cannot be read or holds no keyframe.
    """
    for trust in range(len(_STARTS)):
        table = _read(video, start, seconds, float("inf"), trust)
        # A keyframe may be decoded before `start` and be shown after it; some containers are sought inaccurately.
        while table.seek is not None and not (table.packets and table.packets[0].pts <= table.start):
            earlier = table.packets[0].mark[1] if table.packets else None
            before = None if earlier is None or earlier > table.seek else earlier - 1
            table = _read(video, start, seconds, before, trust)
        if table.packets:
            return table
    raise unreadable(video, NO_KEYFRAME)


NO_PICTURE = "its edit list leaves out all pictures from there on"
NO_KEYFRAME = "it holds no keyframe, thus no picture that can be decoded"

_STARTS: Sequence[Callable[..., bool]] = (
    lambda packet, coded: coded.key,
    lambda packet, coded: packet.is_keyframe,  # such as pictures that recover by and by, in streams of none else
    lambda packet, coded: True,
)
"""Where decoding may start, for want of something better: a picture that is a keyframe, is called so, any."""


def _read(video: Media, start: float, seconds: float | None, before: float | None, trust: int = 0) -> Index:
    """The index from the last keyframe before `start` and the time `before` on, or from the beginning (None)."""
    import av

    with opened(video) as (container, stream):
        context = stream.codec_context
        codec, extradata, reorders = context.name, bytes(context.extradata or b""), context.has_b_frames
        read, colour = reader(codec, extradata), Colour.of(stream)
        clock, head = _clock(container, stream, demuxed(container, stream))
        # Exact: the ticks of AVI's and MXF's clocks are as long as pictures.
        first = clock.origin + Fraction(start).limit_denominator(10**6) / clock.base
        until = None if seconds is None else first + Fraction(seconds) / clock.base
        seek = None
        if clock.field and before is not None and min(first, before) > clock.origin and _finds(video, head):
            seek = math.floor(min(first, before))
            try:
                container.seek(seek, stream=stream, backward=True)
            except av.FFmpegError:
                return _read(video, start, seconds, None, trust)
            head = []
        rows: list[_Row] = []
        skipped, past, end = 0, 0, 0
        for packet in chain(head, demuxed(container, stream)):
            coded = read(packet)
            if not rows and not _STARTS[trust](packet, coded):
                skipped += 1
                continue
            rows.append(_Row(packet.pts, packet.dts, packet.duration or 0, packet.is_discard, mark(packet), coded))
            # Later packets are shown later than this one is decoded; a time of decoding after showing is wrong.
            known = [time for time in (packet.pts, packet.dts) if time is not None and clock.field]
            reorders = reorders or bool(coded.later)
            past += until is not None and min(known, default=clock.at(len(rows))) > until
            if past > (DELAY if reorders else 0):
                end = None
                break
        step = max(1, int(1 / clock.rate / clock.base))
        table = Index(codec, clock.base, clock.origin, first, step, (), (), end, seek, skipped, skipped)
        table = replace(
            table, sought=clock.field is not None, extradata=extradata, aspect=pixel_aspect(stream), colour=colour
        )
        alone = codec in SPLIT or context.codec.intra_only
    if not rows:
        return table
    times = [clock.time(row, number) for number, row in enumerate(rows)]
    table = replace(table, packets=tuple(Packet(NEVER, row.mark, *row.coded[:2]) for row in rows))
    if seek is not None and not alone and not _begins(video, table):
        return _read(video, start, seconds, None, trust)
    if trust == 0 and not _contradicted(rows, times, reorders):
        return _as_told(video, table, rows, times)
    return _as_decoded(video, table, clock, rows, times) or _read(video, start, seconds, None, trust)


def _finds(video: Media, head: Sequence) -> bool:
    """Whether seeking leads to where the times say: MXF stores none, and without its index they are guessed."""
    import av

    with opened(video) as (container, stream):
        if container.format.name != "mxf" or head[-1].dts is None:
            return True
        try:
            container.seek(head[-1].dts, stream=stream, backward=True)
            return mark(next(demuxed(container, stream), head[0])) in [mark(packet) for packet in head]
        except av.FFmpegError:
            return False


def _contradicted(rows: Sequence[_Row], times: Sequence[int | None], reorders: bool) -> bool:
    """Whether the packets' times are not, or may not be, when their pictures are shown.

    Args:
        times: of the rows.
        reorders: as far as the decoder knows, it shows pictures in another order than it gets them.
    """
    shown = [time for time, row in zip(times, rows, strict=True) if not row.hidden]
    if None in times or len(set(shown)) < len(shown) or any(row.coded.pictures > 1 for row in rows):
        return True
    ascending = all(a < b for a, b in pairwise(times))
    if any(row.coded.later is None for row in rows):
        return ascending == reorders and len(rows) > 1
    # A picture that refers to later ones was decoded after them, and is shown before them.
    latest = list(accumulate(times, max))
    late = any(
        row.coded.later and time > most for row, time, most in zip(rows[1:], times[1:], latest[:-1], strict=True)
    )
    return late or not (ascending or any(row.coded.later for row in rows))


def _as_told(video: Media, table: Index, rows: Sequence[_Row], times: Sequence[int]) -> Index:
    """The index where the packets' times are those of their pictures."""
    packets = tuple(packet._replace(pts=time) for packet, time in zip(table.packets, times, strict=True))
    # What is shown before the first keyframe refers to frames before it.
    shown = sorted(time for row, time in zip(rows, times, strict=True) if time >= times[0] and not row.hidden)
    if not shown:
        raise unreadable(video, NO_PICTURE)
    step, end = _usual_step(shown, table.step), None
    if table.end is not None or any(row.hidden and time > shown[-1] for row, time in zip(rows, times, strict=True)):
        lasting = max((time, row.duration) for row, time in zip(rows, times, strict=True) if not row.hidden)[1]
        end = shown[-1] + _lasts(lasting, sum(row.duration for row in rows), max(times) - min(times) + step, step)
    early = sum(time < times[0] for time in times)
    return replace(table, packets=packets, times=tuple(shown), end=end, headless=table.headless + early, step=step)


def _as_decoded(
    video: Media, table: Index, clock: _Clock, rows: Sequence[_Row], times: Sequence[int | None]
) -> Index | None:
    """The index where the decoder says in which order pictures are shown, and the packets only at which times.

    None where the frames must be counted from the stream's beginning.
    """
    table = replace(table, cut=any(row.hidden for row in rows))
    first = _last_before(table, times)
    order, sure, broken, lag = _presented(video, table, first)
    if not order:
        raise unreadable(video, NO_KEYFRAME)
    # What is shown before that keyframe refers to frames before it: decoders leave it out. Where frames are counted, a
    # video begins with the first one that is shown.
    given, lost = set(order), []
    for number in range(first, len(rows) if clock.field or first else 0):
        if number not in given and (table.codec not in WHOLE or table.packets[number].mark[2] > FEW):
            lost.append(number)
        elif number > first:
            break
    packed = any(row.coded.pictures > 1 for row in rows)
    if packed or order == sorted(order):
        lag = 0
    slots = _slots(clock, rows, sorted([*lost, *order]), None if table.seek is not None else first, lag)
    if slots is None:
        return None
    if table.end is None or broken:
        del order[sure:]
    if not order:
        raise unreadable(video, "decoding stops at its first pictures")
    taken = list(zip(order, slots[len(lost) : len(lost) + len(order)], strict=True))
    # Of pictures at the same time the last one is seen.
    placed = dict(a for a, b in zip(taken, [*taken[1:], None], strict=True) if b is None or a[1].time != b[1].time)
    begin = placed.get(first, min(placed.values())).time
    shown = sorted(slot.time for slot in placed.values() if slot.time >= begin and not slot.hidden)
    if not shown:
        raise unreadable(video, NO_PICTURE)
    at = {number: slot.time for number, slot in placed.items()}
    at |= {number: time for number, time in enumerate(times[:first]) if time is not None}
    at.setdefault(0, begin)
    packets = tuple(
        packet._replace(
            pts=at.get(number, NEVER),
            # Of pictures that were packed, decoders keep parts from packet to packet, even when told to forget them.
            key=packet.key and (number == 0 or not packed),
            disposable=packet.disposable and not packed,
        )
        for number, packet in enumerate(table.packets)
    )
    step = _usual_step(shown, table.step)
    return replace(
        table,
        packets=packets,
        times=tuple(shown),
        origin=slots[0].origin,
        start=table.start - table.origin + slots[0].origin,
        step=step,
        end=None if table.end is None and not broken else shown[-1] + step,
        headless=table.headless + (len(lost) if not first else 0),
    )


class _Slot(NamedTuple):
    time: int
    hidden: bool  # left out by an edit list
    origin: int  # when the stream's first picture is shown, by the same clock


def _slots(
    clock: _Clock, rows: Sequence[_Row], numbers: Sequence[int], before: int | None, lag: int
) -> list[_Slot] | None:
    """The times of these rows in order, whichever pictures they belong to.

    Counted where the packets' times are none, after so many pictures `before`; None where that is not known.

    Args:
        lag: so many pictures more than it has shown the decoder has got. Times that tell when pictures are decoded tell
            of another picture, too: the one that is shown then.
    """
    for field, origin in sorted(clock.origins.items(), reverse=not (lag and clock.decoding)):
        told = [getattr(rows[number], field) for number in numbers]
        if None in told or 2 * len(set(told)) <= len(told):
            continue
        lead, start = 0, clock.first[field][: lag + 1]
        if lag and told == sorted(told):
            step = _usual_step(told, max(1, clock.at(1)))
            lead = start[-1] - start[0] if len(start) > lag and None not in start else lag * step
            # Of the pictures that are decoded before an edit list's cut, so many are shown after it.
            origin = max(origin, min(time for time in start if time is not None) + lead)
            numbers = [*numbers[lag:], *numbers[-1:] * lag]
            told = [*told[lag:], *(told[-1] + step * n for n in range(1, lag + 1))]
        return sorted(_Slot(time - lead, rows[n].hidden, origin - lead) for time, n in zip(told, numbers, strict=True))
    return None if before is None else [_Slot(clock.at(before + n), False, 0) for n in range(len(numbers))]


def _last_before(table: Index, times: Sequence[int | None]) -> int:
    """The last keyframe that is certainly shown before the window, or the first one.

    All that is decoded before a keyframe is shown before it, so that it is known how many those are; and at most DELAY
    packets that follow it hold such pictures, too.
    """
    for number in range(len(times) - DELAY - 1, 0, -1):
        time = times[number + DELAY]
        if table.codec in SPLIT and table.packets[number].key and time is not None and time <= table.start:
            return number
    return 0


def _presented(video: Media, table: Index, first: int) -> tuple[list[int], int, bool, int]:
    """The numbers of the packets from `first` on in the order in which the decoder shows their pictures.

    Also how many of them nothing that follows can change, whether decoding stopped at an error, and how many pictures
    the decoder keeps before it shows one.
    """
    import av

    by_time = {packet.mark[0]: number for number, packet in enumerate(table.packets)}
    order: list[int | None] = []

    def number(frame) -> int | None:
        return by_time.get(frame.pts) if number_of(frame) is None else number_of(frame)

    for seek in (True, False) if table.seek is not None else (False,):
        sure, broken = None, False
        with opened(video) as (container, stream):
            context = decoder(stream, pictures=False)
            try:
                for _, packet in again(container, stream, table, first, len(table.packets), seek):
                    order += [number(frame) for frame in decoded(context, packet)]
                sure = len(order)
                order += [number(frame) for frame in context.decode(None)]
            except Missed:
                continue
            except av.FFmpegError:
                sure, broken = len(order), True
        lag = len(order) - sure
        order = [each for each in order if each is not None]
        return list(dict.fromkeys(order)), sure, broken, lag
    raise unreadable(video, CHANGED)


def _begins(video: Media, table: Index) -> bool:
    """The decoder calls the first packet's picture a keyframe."""
    import av

    with opened(video) as (container, stream):
        context = decoder(stream, pictures=False)
        try:
            for _, packet in again(container, stream, table, 0, len(table.packets), seek=True):
                for frame in context.decode(packet):
                    return frame.key_frame and number_of(frame) in (0, None)
        except (Missed, av.FFmpegError):
            return False
    return False


def _usual_step(times: Sequence[int], told: int) -> int:
    """From a picture to the next one: the median, or what is told where there are too few."""
    steps = sorted(b - a for a, b in pairwise(times))
    return steps[len(steps) // 2] if len(steps) > 1 else told


# ---------------------------------------------------------------------------------------------------------------
# The extent: how many pictures, how fast and how long
# ---------------------------------------------------------------------------------------------------------------


class Extent(NamedTuple):
    frames: int
    source: str  # "header": the file says so, and its index agrees; "counted": its packets were counted
    rate: Fraction  # average frames a second
    seconds: float


def extent(video: Media) -> Extent:
    """How many pictures a video has and how long it lasts: what its header says, where its packets agree.

    The index of an MP4 or AVI file is compared, which takes no time; without one all packets are read, none decoded.
    """
    with opened(video) as (_, stream):
        rates = [stream.average_rate, stream.guessed_rate, _coded_rate(stream)]
        frames, seconds = stream.frames, float(stream.duration * stream.time_base) if stream.duration else 0.0
        if seconds and frames and frames == len(stream.index_entries) and (stream.average_rate or 0) <= FASTEST:
            measured = float(_spread(stream.index_entries) * stream.time_base)
            trusted = abs(measured - seconds) <= 0.02 * seconds + 2 * seconds / frames
        else:
            trusted = False
    if not trusted:
        frames, seconds = _counted(video)
    agreeing = (rate for rate in rates if rate and abs(float(rate) * seconds - frames) <= 1 + 0.02 * frames)
    rate = next(agreeing, None) or Fraction(frames / seconds if seconds else 1).limit_denominator(1001)
    return Extent(frames, "header" if trusted else "counted", Fraction(rate), seconds)


def _spread(entries) -> int:
    """From the first entry of an index to the end of the last one, which is taken to be as long as the others."""
    count = len(entries)
    spread = entries[count - 1].timestamp - entries[0].timestamp
    return spread + (spread // (count - 1) if count > 1 else 0)


def _counted(video: Media) -> tuple[int, float]:
    """Pictures and seconds of a video, by reading its packets without decoding them."""
    with opened(video) as (container, stream):
        clock, head = _clock(container, stream, demuxed(container, stream))
        count, durations, times = 0, 0, []
        for packet in chain(head, demuxed(container, stream)):
            if packet.is_discard:
                continue
            count += 1
            duration = packet.duration or 0
            time = getattr(packet, clock.field) if clock.field else clock.at(count - 1)
            if time is not None:
                durations += duration
                first, last = (
                    (min(times[0], (time, duration)), max(times[1], (time, duration)))
                    if times
                    else [(time, duration)] * 2
                )
                times = [first, last]
    if not times:
        return count, 0.0
    (first, _), (last, lasting) = times
    step = Fraction(last - first, count - 1) if last > first else clock.at(1)
    return count, float((last - first + _lasts(lasting, durations, last - first + step, step)) * clock.base)


def _lasts(told: int, durations: int, spread: Fraction, step: Fraction) -> Fraction:
    """How long the last picture is shown: some containers tell no durations, or such as the tick of their clock."""
    return told if told and spread < 2 * durations < 4 * spread else step
