"""When each picture of a stream is shown, and how many there are: the one place where what a container says about its
pictures is checked, against what the pictures themselves and their decoder say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import accumulate, chain, islice, pairwise

from ..errors import UserError
from .coded import reader
from .limits import FASTEST
from .opening import Media, opened, unreadable
from .packets import FEW, NEVER, SPLIT, WHOLE, Index, Packet, Reader, number_of, packets_of
from .showing import Colour, pixel_aspect

DELAY = 33
"""Packets that come at most before one that is shown earlier, and one more: H.264 and HEVC allow 16 pictures, each of
which may be two fields."""

UNKNOWN = 25  # frames a second, where nothing tells
MOST = 240  # frames a second that a codec's headers are believed

NO_PICTURE = "its edit list leaves out all pictures from there on"
NO_KEYFRAME = "it holds no keyframe, thus no picture that can be decoded"


class _Clock:
    """Where the times of a stream come from; `head` are its first packets, which are read for it."""

    def __init__(self, container, stream):
        from av.format import Flags

        self.base = stream.time_base
        # The format stores when pictures are decoded alone; libavformat makes up when they are shown.
        self.decoding = container.format.name in ("avi", "asf")
        rate, coded = Fraction(stream.average_rate or stream.guessed_rate or UNKNOWN), _coded_rate(stream)
        many = stream.codec_context.has_b_frames or rate > FASTEST
        self.head = head = list(islice(packets_of(container, stream), DELAY if many else 1))
        # Where a format stores no times, what libavformat gives for them is made up, at 25 frames a second.
        counted = bool(container.format.flags & Flags.no_timestamps.value)
        # Such as times before zero in Matroska: those that follow do not tell when the stream begins.
        counted = counted or (bool(head) and head[0].pts is None and head[0].dts is None)
        # Field of a packet ("pts", or "dts", which tells when it is decoded) -> when the stream's first picture is
        # shown. None where nothing tells, and frames are counted, at so many a second.
        self.origins: dict[str, int] = {}
        for field in ("pts", "dts"):
            times = [time for packet in head if not packet.is_discard and (time := getattr(packet, field)) is not None]
            if times:
                self.origins[field] = min(times)
                # Such as in an AVI file of a wrong rate, which is all that it has of a clock.
                hasty = len(times) > 2 and (len(times) - 1) > (max(times) - min(times)) * self.base * FASTEST
                counted = counted or (hasty and coded is not None)
        if counted:
            self.origins, rate = {}, coded or rate
        self.rate = rate
        self.field, self.origin = next(iter(self.origins.items()), (None, 0))

    def at(self, count: int) -> int:
        """The time of a picture after so many others, at the stream's rate."""
        return round(count / self.rate / self.base)

    def time(self, packet, count: int) -> int | None:
        return getattr(packet, self.field) if self.field else self.at(count)


def _coded_rate(stream) -> Fraction | None:
    """Frames a second as the codec's own headers say; some only tell the ticks of their clock, which are too many."""
    for rate in (stream.codec_context.framerate, stream.guessed_rate):
        if rate and 1 <= rate <= MOST:
            return Fraction(rate)
    return None


# --- The index: which packets there are, and when their pictures are shown ------------------------------------------


def index(video: Media, start: float = 0.0, seconds: float | None = None) -> Index:
    """The packets of the frames shown from `start` on, for so many seconds (None: to the end).

    Nothing is decoded where the packets' times can be those of their pictures. Otherwise, as with B-frames in AVI,
    which stores no times, the window is decoded for the order in which its pictures are shown.

    Raises UserError where the file cannot be read or holds no keyframe.
    """
    for trust in range(3):
        table = _read(video, start, seconds, float("inf"), trust)
        # A keyframe may be decoded before `start` and be shown after it; some containers are sought inaccurately.
        while table.seek is not None and not (table.packets and table.packets[0].time <= table.start):
            earlier = table.packets[0].dts if table.packets else None
            before = None if earlier is None or earlier > table.seek else earlier - 1
            table = _read(video, start, seconds, before, trust)
        if table.packets:
            return table
    raise unreadable(video, NO_KEYFRAME)


def _read(video: Media, start: float, seconds: float | None, before: float | None, trust: int) -> Index:
    """The index from the last keyframe before `start` and the time `before` on, or from the beginning (None).

    Decoding may start, by `trust`, at a picture that is a keyframe (0), one that is called so, such as those that
    recover by and by, in streams of none else (1), any (2)."""
    import av

    with opened(video) as (container, stream):
        context = stream.codec_context
        codec, extradata, reorders = context.name, bytes(context.extradata or b""), context.has_b_frames
        alone, aspect, colour = codec in SPLIT or context.codec.intra_only, pixel_aspect(stream), Colour.of(stream)
        read, clock = reader(codec, extradata), _Clock(container, stream)
        # Exact: the ticks of AVI's and MXF's clocks are as long as pictures.
        first = clock.origin + Fraction(start).limit_denominator(10**6) / clock.base
        until = math.inf if seconds is None else first + Fraction(seconds) / clock.base
        seek, head = None, clock.head
        if clock.field and before is not None and min(first, before) > clock.origin and _finds(video, head):
            seek, head = math.floor(min(first, before)), []
            try:
                container.seek(seek, stream=stream, backward=True)
            except av.FFmpegError:
                return _read(video, start, seconds, None, trust)
        packets: list[Packet] = []
        skipped, past, end = 0, 0, 0
        for each in chain(head, packets_of(container, stream)):
            coded = read(each)
            if not packets and not (coded.key, each.is_keyframe, True)[trust]:
                skipped += 1
                continue
            told = each.pts, each.dts, each.size, each.pos, each.duration or 0, each.is_discard
            packets.append(Packet(*told, coded))
            # Later packets are shown later than this one is decoded; a time of decoding after showing is wrong.
            known = [time for time in (each.pts, each.dts) if time is not None and clock.field]
            reorders = reorders or bool(coded.later)
            past += min(known, default=clock.at(len(packets))) > until
            if past > (DELAY if reorders else 0):
                end = None
                break
    step, sought = max(1, int(1 / clock.rate / clock.base)), clock.field is not None
    window = codec, clock.base, clock.origin, first, step, tuple(packets), (), end, seek, skipped, skipped
    table = Index(*window, sought, extradata=extradata, aspect=aspect, colour=colour)
    if not packets:
        return table
    times = [clock.time(packet, number) for number, packet in enumerate(packets)]
    if seek is not None and not alone and not _begins(video, table):
        return _read(video, start, seconds, None, trust)
    if trust == 0 and not _contradicted(packets, times, reorders):
        return _as_told(video, table, times)
    return _as_decoded(video, table, clock, times) or _read(video, start, seconds, None, trust)


def _finds(video: Media, head: Sequence) -> bool:
    """Whether seeking leads to where the times say: MXF stores none, and without its index they are guessed."""
    import av

    with opened(video) as (container, stream):
        if container.format.name != "mxf" or head[-1].dts is None:
            return True
        try:
            container.seek(head[-1].dts, stream=stream, backward=True)
            found = next(packets_of(container, stream), head[0])
            return any((p.pts, p.dts, p.size, p.pos) == (found.pts, found.dts, found.size, found.pos) for p in head)
        except av.FFmpegError:
            return False


def _contradicted(packets: Sequence[Packet], times: Sequence[int | None], reorders: bool) -> bool:
    """Whether the packets' times are not, or may not be, when their pictures are shown; `reorders`: as far as the
    decoder knows, it shows them in another order than it gets them."""
    shown = [time for time, packet in zip(times, packets, strict=True) if not packet.hidden]
    if None in times or len(set(shown)) < len(shown) or any(packet.coded.pictures > 1 for packet in packets):
        return True
    ascending = all(a < b for a, b in pairwise(times))
    later = [packet.coded.later for packet in packets]
    if None in later:
        return ascending == reorders and len(packets) > 1
    # A picture that refers to later ones was decoded after them, and is shown before them.
    late = any(b and time > most for b, time, most in zip(later[1:], times[1:], accumulate(times, max), strict=False))
    return late or not (ascending or any(later))


def _as_told(video: Media, table: Index, times: Sequence[int]) -> Index:
    """The index where the packets' times are those of their pictures."""
    placed = {number: (time, table.packets[number].hidden) for number, time in enumerate(times)}
    # What is shown before the first keyframe refers to frames before it.
    table = _placed(video, table, placed, times[0], dict(enumerate(times)))
    end, last, step = None, table.times[-1], table.step
    if table.end is not None or any(hidden and time > last for time, hidden in placed.values()):
        lasting = max((packet.time, packet.duration) for packet in table.packets if not packet.hidden)[1]
        durations = sum(packet.duration for packet in table.packets)
        end = last + _lasts(lasting, durations, max(times) - min(times) + step, step)
    return replace(table, end=end, headless=table.headless + sum(time < times[0] for time in times))


def _as_decoded(video: Media, table: Index, clock: _Clock, times: Sequence[int | None]) -> Index | None:
    """The index where the decoder says in which order pictures are shown, and the packets only at which times; None
    where the frames must be counted from the stream's beginning."""
    table = replace(table, cut=any(packet.hidden for packet in table.packets))
    first = _last_before(table, times)
    order, sure, broken, lag = _presented(video, table, first)
    if not order:
        raise unreadable(video, NO_KEYFRAME)
    # What is shown before that keyframe refers to frames before it: decoders leave it out. Where frames are counted, a
    # video begins with the first one that is shown.
    given, lost = set(order), []
    for number in range(first, len(times) if clock.field or first else 0):
        if number not in given and (table.codec not in WHOLE or table.packets[number].size > FEW):
            lost.append(number)
        elif number > first:
            break
    packed = any(packet.coded.pictures > 1 for packet in table.packets)
    if packed or order == sorted(order):
        lag = 0
    before = None if table.seek is not None else first
    if (found := _slots(clock, table.packets, sorted([*lost, *order]), before, lag)) is None:
        return None
    origin, slots = found
    if table.end is None or broken:
        del order[sure:]
    if not order:
        raise unreadable(video, "decoding stops at its first pictures")
    taken = list(zip(order, slots[len(lost) : len(lost) + len(order)], strict=True))
    # Of pictures at the same time the last one is seen.
    placed = dict(a for a, b in zip(taken, [*taken[1:], None], strict=True) if b is None or a[1][0] != b[1][0])
    begin = placed.get(first, min(placed.values()))[0]
    earlier = {number: time for number, time in enumerate(times[:first]) if time is not None}
    at = {0: begin} | {number: time for number, (time, _) in placed.items()} | earlier
    table = _placed(video, table, placed, begin, at)
    if packed:  # decoders keep parts of such pictures from packet to packet, even when told to forget them
        packets = (
            packet._replace(coded=packet.coded._replace(key=packet.coded.key and number == 0, disposable=False))
            for number, packet in enumerate(table.packets)
        )
        table = replace(table, packets=tuple(packets))
    return replace(
        table,
        origin=origin,
        start=table.start - table.origin + origin,
        end=None if table.end is None and not broken else table.times[-1] + table.step,
        headless=table.headless + (len(lost) if not first else 0),
    )


def _placed(video: Media, table: Index, placed: dict[int, tuple[int, bool]], begin: int, at: dict[int, int]) -> Index:
    """The index of pictures that are `placed` (number of a packet -> when it is shown, whether an edit list leaves it
    out) and shown from `begin` on; `at`: the times of the packets."""
    shown = sorted(time for time, hidden in placed.values() if time >= begin and not hidden)
    if not shown:
        raise unreadable(video, NO_PICTURE)
    packets = tuple(packet._replace(time=at.get(number, NEVER)) for number, packet in enumerate(table.packets))
    return replace(table, packets=packets, times=tuple(shown), step=_usual_step(shown, table.step))


def _slots(
    clock: _Clock, packets: Sequence[Packet], numbers: Sequence[int], before: int | None, lag: int
) -> tuple[int, list[tuple[int, bool]]] | None:
    """When the stream's first picture is shown, and, by the same clock, (time, whether an edit list leaves it out) of
    these packets in order, whichever pictures they belong to; counted after so many pictures `before` where their times
    are none; None where that is not known.

    The decoder has got so many pictures more than it has shown, its `lag`: times that tell when pictures are decoded
    tell of another picture, too, the one that is shown then."""
    for field, origin in sorted(clock.origins.items(), reverse=not (lag and clock.decoding)):
        told = [getattr(packets[number], field) for number in numbers]
        if None in told or 2 * len(set(told)) <= len(told):
            continue
        lead, start = 0, [getattr(packet, field) for packet in clock.head[: lag + 1]]
        if lag and told == sorted(told):
            step = _usual_step(told, max(1, clock.at(1)))
            lead = start[-1] - start[0] if len(start) > lag and None not in start else lag * step
            # Of the pictures that are decoded before an edit list's cut, so many are shown after it.
            origin = max(origin, min(time for time in start if time is not None) + lead)
            numbers = [*numbers[lag:], *numbers[-1:] * lag]
            told = [*told[lag:], *(told[-1] + step * n for n in range(1, lag + 1))]
        times = zip(told, numbers, strict=True)
        return origin - lead, sorted((time - lead, packets[number].hidden) for time, number in times)
    return None if before is None else (0, [(clock.at(before + n), False) for n in range(len(numbers))])


def _last_before(table: Index, times: Sequence[int | None]) -> int:
    """The last keyframe that is certainly shown before the window, or the first one: all that is decoded before it is
    shown before it, so that it is known how many those are, and some of at most DELAY packets that follow it."""
    for number in range(len(times) - DELAY - 1, 0, -1):
        time = times[number + DELAY]
        if table.codec in SPLIT and table.packets[number].coded.key and time is not None and time <= table.start:
            return number
    return 0


def _presented(video: Media, table: Index, first: int) -> tuple[list[int], int, bool, int]:
    """The numbers of the packets from `first` on in the order in which the decoder shows their pictures; how many of
    them nothing that follows can change; whether decoding stopped at an error; how many pictures the decoder keeps."""
    import av

    by_time = {packet.pts: number for number, packet in enumerate(table.packets)}
    order: list[int | None] = []
    sure, broken = None, False

    def show(frames: list) -> None:
        order.extend(by_time.get(frame.pts) if (n := number_of(frame)) is None else n for frame in frames)

    with Reader(video, table, pictures=False) as reader:
        try:
            for _, packet in reader.packets(first, len(table.packets)):
                show(reader.decode(packet))
            sure = len(order)
            show(reader.context.decode(None))
        except av.FFmpegError:
            sure, broken = len(order), True
    return list(dict.fromkeys(n for n in order if n is not None)), sure, broken, len(order) - sure


def _begins(video: Media, table: Index) -> bool:
    """The decoder calls the first packet's picture a keyframe."""
    import av

    with Reader(video, table, pictures=False) as reader:
        try:
            frame = next(reader.frames(0, len(table.packets)), None)
        except (UserError, av.FFmpegError):
            return False
        return frame is not None and frame.key_frame and number_of(frame) in (0, None)


def _usual_step(times: Sequence[int], told: int) -> int:
    """From a picture to the next one: the median, or what is told where there are too few."""
    steps = sorted(b - a for a, b in pairwise(times))
    return steps[len(steps) // 2] if len(steps) > 1 else told


# --- The extent: how many pictures, how fast and how long -----------------------------------------------------------


def extent(video: Media) -> tuple[int, Fraction, float]:
    """(pictures, their average rate, seconds): as the header says, where the index of an MP4 or AVI file agrees, which
    takes no time; else all packets are read, none decoded."""
    with opened(video) as (_, stream):
        rates = [stream.average_rate, stream.guessed_rate, _coded_rate(stream)]
        frames, seconds = stream.frames, float(stream.duration * stream.time_base) if stream.duration else 0.0
        trusted = False
        if seconds and frames and frames == len(stream.index_entries) and (stream.average_rate or 0) <= FASTEST:
            spread = stream.index_entries[frames - 1].timestamp - stream.index_entries[0].timestamp
            spread += spread // (frames - 1) if frames > 1 else 0  # the last one is taken to be as long as the others
            trusted = abs(float(spread * stream.time_base) - seconds) <= 0.02 * seconds + 2 * seconds / frames
    if not trusted:
        frames, seconds = _counted(video)
    agreeing = (rate for rate in rates if rate and abs(float(rate) * seconds - frames) <= 1 + 0.02 * frames)
    rate = next(agreeing, None) or Fraction(frames / seconds if seconds else 1).limit_denominator(1001)
    return frames, Fraction(rate), seconds


def _counted(video: Media) -> tuple[int, float]:
    """Pictures and seconds of a video, by reading its packets without decoding them."""
    with opened(video) as (container, stream):
        clock, count, durations, ends = _Clock(container, stream), 0, 0, []
        for packet in chain(clock.head, packets_of(container, stream)):
            if packet.is_discard:
                continue
            count += 1
            if (time := clock.time(packet, count - 1)) is not None:
                durations += packet.duration or 0
                ends = [*ends, (time, packet.duration or 0)]
                ends = [min(ends), max(ends)]
    if not ends:
        return count, 0.0
    (first, _), (last, lasting) = ends
    step = Fraction(last - first, count - 1) if last > first else clock.at(1)
    return count, float((last - first + _lasts(lasting, durations, last - first + step, step)) * clock.base)


def _lasts(told: int, durations: int, spread: Fraction, step: Fraction) -> Fraction:
    """How long the last picture is shown: some containers tell no durations, or such as the tick of their clock."""
    return told if told and spread < 2 * durations < 4 * spread else step
