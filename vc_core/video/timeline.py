"""Find when each picture of a stream is shown, and how many pictures there are. Only this module compares what a
container says about its pictures with what the pictures themselves and their decoder say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import accumulate, chain, islice, pairwise

from ..errors import UserError
from .coded import packet_parser
from .limits import FASTEST
from .opening import Media, opened, unreadable
from .packets import FEW, NEVER, ONE_PER_PACKET, SPLIT, Index, Packet, Reader, number_of, packets_of
from .showing import Colour, pixel_aspect

DELAY = 33
"""The highest number of packets that can precede a packet with an earlier display time, plus one: H.264 and HEVC allow
16 pictures, each of which may be two fields."""

UNKNOWN = 25  # frames per second, if nothing says the rate
MOST = 240  # the highest frames per second accepted from a codec's headers

NO_PICTURE = "its edit list skips all frames from there on"
NO_KEYFRAME = "it contains no keyframe, so no frame can be decoded"


class _Clock:
    """The source of a stream's times. `head` are its first packets, which are read to find it."""

    def __init__(self, container, stream):
        from av.format import Flags

        self.base = stream.time_base
        # These formats store only decoding times; libavformat invents the display times.
        self.decoding = container.format.name in ("avi", "asf")
        rate, coded = Fraction(stream.average_rate or stream.guessed_rate or UNKNOWN), _coded_rate(stream)
        many = stream.codec_context.has_b_frames or rate > FASTEST
        self.head = head = list(islice(packets_of(container, stream), DELAY if many else 1))
        # If a format stores no times, libavformat invents them, at 25 frames per second.
        no_times = bool(container.format.flags & Flags.no_timestamps.value)
        # E.g. for times before zero in Matroska: the later times do not say when the stream begins.
        no_times = no_times or (bool(head) and head[0].pts is None and head[0].dts is None)
        # Field of a packet ("pts", or "dts" for the decoding time) -> when the stream's first picture is shown. Empty
        # if no times are known; then frames are counted, at `rate`.
        self.origins: dict[str, int] = {}
        for field in ("pts", "dts"):
            times = [time for packet in head if not packet.is_discard and (time := getattr(packet, field)) is not None]
            if times:
                self.origins[field] = min(times)
                # E.g. in an AVI file with a wrong rate, because AVI's only clock is its rate.
                hasty = len(times) > 2 and (len(times) - 1) > (max(times) - min(times)) * self.base * FASTEST
                no_times = no_times or (hasty and coded is not None)
        if no_times:
            self.origins, rate = {}, coded or rate
        self.rate = rate
        self.field, self.origin = next(iter(self.origins.items()), (None, 0))

    def counted(self, count: int) -> int:
        """Return the time of the picture after `count` others, at the stream's rate."""
        return round(count / self.rate / self.base)

    def time(self, packet, count: int) -> int | None:
        """Return a packet's time, or if the container stores none, the counted time after `count` packets."""
        return getattr(packet, self.field) if self.field else self.counted(count)


def _coded_rate(stream) -> Fraction | None:
    """Return the frames per second in the codec's own headers, if plausible: some contain only clock ticks."""
    for rate in (stream.codec_context.framerate, stream.guessed_rate):
        if rate and 1 <= rate <= MOST:
            return Fraction(rate)
    return None


# --- The index: which packets there are, and when their pictures are shown ------------------------------------------


def index(video: Media, start: float = 0.0, seconds: float | None = None) -> Index:
    """Return the index of the packets of the frames shown from `start` on, for `seconds` (None: to the end).

    Nothing is decoded if the packets' times can be their pictures' display times. Otherwise, e.g. for B-frames in AVI,
    which stores no times, the window is decoded to find the display order.

    Raises UserError if the file cannot be read or contains no keyframe.
    """
    for trust in range(3):
        table = _read(video, start, seconds, float("inf"), trust)
        # A keyframe may be decoded before `start` and shown after it; seeking is inaccurate in some containers.
        while table.seek is not None and not (table.packets and table.packets[0].time <= table.start):
            first_time = table.packets[0].dts if table.packets else None
            latest_seek = None if first_time is None or first_time > table.seek else first_time - 1
            table = _read(video, start, seconds, latest_seek, trust)
        if table.packets:
            return table
    raise unreadable(video, NO_KEYFRAME)


def _read(video: Media, start: float, seconds: float | None, latest_seek: float | None, trust: int) -> Index:
    """Return the index from the last keyframe at or before both `start` and `latest_seek` (a time of the stream), or
    from the stream's beginning if `latest_seek` is None.

    `trust` says where decoding may start: at a real keyframe (0), at a picture that the container calls a keyframe,
    e.g. a recovery point in a stream without keyframes (1), or anywhere (2)."""
    import av

    with opened(video) as (container, stream):
        context = stream.codec_context
        codec, extradata, reorders = context.name, bytes(context.extradata or b""), context.has_b_frames
        split, aspect, colour = codec in SPLIT or context.codec.intra_only, pixel_aspect(stream), Colour.of(stream)
        parse, clock = packet_parser(codec, extradata), _Clock(container, stream)
        # An exact fraction, because the ticks of AVI's and MXF's clocks are as long as pictures.
        window_start = clock.origin + Fraction(start).limit_denominator(10**6) / clock.base
        window_end = math.inf if seconds is None else window_start + Fraction(seconds) / clock.base
        seek, head = None, clock.head
        goal = window_start if latest_seek is None else min(window_start, latest_seek)
        if clock.field and latest_seek is not None and goal > clock.origin and _seeking_works(video, head):
            seek, head = math.floor(goal), []
            try:
                container.seek(seek, stream=stream, backward=True)
            except av.FFmpegError:
                return _read(video, start, seconds, None, trust)
        packets: list[Packet] = []
        skipped, past, end = 0, 0, 0
        for packet in chain(head, packets_of(container, stream)):
            coded = parse(packet)
            if not packets and not (coded.key, packet.is_keyframe, True)[trust]:
                skipped += 1
                continue
            stored = packet.pts, packet.dts, packet.size, packet.pos, packet.duration or 0, packet.is_discard
            packets.append(Packet(*stored, coded))
            # Later packets are shown after this one is decoded; a decoding time after the display time is wrong.
            stamps = [time for time in (packet.pts, packet.dts) if time is not None and clock.field]
            reorders = reorders or bool(coded.later)
            past += min(stamps, default=clock.counted(len(packets))) > window_end
            if past > (DELAY if reorders else 0):
                end = None
                break
    step, seekable = max(1, int(1 / clock.rate / clock.base)), clock.field is not None
    table = Index(
        codec=codec,
        time_base=clock.base,
        origin=clock.origin,
        start=window_start,
        step=step,
        packets=tuple(packets),
        times=(),
        end=end,
        seek=seek,
        skipped=skipped,
        headless=skipped,
        seekable=seekable,
        extradata=extradata,
        aspect=aspect,
        colour=colour,
    )
    if not packets:
        return table
    times = [clock.time(packet, number) for number, packet in enumerate(packets)]
    if seek is not None and not split and not _starts_with_keyframe(video, table):
        return _read(video, start, seconds, None, trust)
    if trust == 0 and not _contradicted(packets, times, reorders):
        return _as_stored(video, table, times)
    return _as_decoded(video, table, clock, times) or _read(video, start, seconds, None, trust)


def _seeking_works(video: Media, head: Sequence) -> bool:
    """Whether seeking arrives at the requested time: MXF stores no times, and without its index they are guessed."""
    import av

    with opened(video) as (container, stream):
        if container.format.name != "mxf" or head[-1].dts is None:
            return True
        try:
            container.seek(head[-1].dts, stream=stream, backward=True)
            packet = next(packets_of(container, stream), head[0])
            return any((p.pts, p.dts, p.size, p.pos) == (packet.pts, packet.dts, packet.size, packet.pos) for p in head)
        except av.FFmpegError:
            return False


def _contradicted(packets: Sequence[Packet], times: Sequence[int | None], reorders: bool) -> bool:
    """Whether the packets' times are not, or may not be, their pictures' display times. `reorders`: whether the decoder
    expects a display order that differs from the decoding order."""
    shown = [time for time, packet in zip(times, packets, strict=True) if not packet.hidden]
    if None in times or len(set(shown)) < len(shown) or any(packet.coded.pictures > 1 for packet in packets):
        return True
    ascending = all(a < b for a, b in pairwise(times))
    later = [packet.coded.later for packet in packets]
    if None in later:
        return ascending == reorders and len(packets) > 1
    # A picture that refers to later ones is decoded after them and shown before them.
    late = any(b and time > most for b, time, most in zip(later[1:], times[1:], accumulate(times, max), strict=False))
    return late or not (ascending or any(later))


def _as_stored(video: Media, table: Index, times: Sequence[int]) -> Index:
    """Complete the index if the packets' times are their pictures' display times."""
    placed = {number: (time, table.packets[number].hidden) for number, time in enumerate(times)}
    # Pictures shown before the first keyframe refer to frames before it.
    table = _with_times(video, table, placed, times[0], dict(enumerate(times)))
    end, last, step = None, table.times[-1], table.step
    if table.end is not None or any(hidden and time > last for time, hidden in placed.values()):
        duration = max((packet.time, packet.duration) for packet in table.packets if not packet.hidden)[1]
        durations = sum(packet.duration for packet in table.packets)
        end = last + _last_duration(duration, durations, max(times) - min(times) + step, step)
    return replace(table, end=end, headless=table.headless + sum(time < times[0] for time in times))


def _as_decoded(video: Media, table: Index, clock: _Clock, times: Sequence[int | None]) -> Index | None:
    """Complete the index with the display order from the decoder, and only the times from the packets. Returns None if
    frames must be counted from the stream's beginning."""
    table = replace(table, cut=any(packet.hidden for packet in table.packets))
    keyframe = _keyframe_before_window(table, times)
    order, sure, broken, lag = _display_order(video, table, keyframe)
    if not order:
        raise unreadable(video, NO_KEYFRAME)
    # Pictures shown before that keyframe refer to frames before it, so decoders drop them. If frames are counted, a
    # video begins with the first shown frame.
    shown, lost = set(order), []
    for number in range(keyframe, len(times) if clock.field or keyframe else 0):
        if number not in shown and (table.codec not in ONE_PER_PACKET or table.packets[number].size > FEW):
            lost.append(number)
        elif number > keyframe:
            break
    packed = any(packet.coded.pictures > 1 for packet in table.packets)
    if packed or order == sorted(order):
        lag = 0
    preceding = None if table.seek is not None else keyframe
    if (located := _display_times(clock, table.packets, sorted([*lost, *order]), preceding, lag)) is None:
        return None
    origin, display_times = located
    if table.end is None or broken:
        del order[sure:]
    if not order:
        raise unreadable(video, "decoding fails at its first frames")
    pairs = list(zip(order, display_times[len(lost) : len(lost) + len(order)], strict=True))
    # Of several pictures at the same time, only the last one is visible.
    placed = dict(a for a, b in zip(pairs, [*pairs[1:], None], strict=True) if b is None or a[1][0] != b[1][0])
    begin = placed.get(keyframe, min(placed.values()))[0]
    earlier = {number: time for number, time in enumerate(times[:keyframe]) if time is not None}
    packet_times = {0: begin} | {number: time for number, (time, _) in placed.items()} | earlier
    table = _with_times(video, table, placed, begin, packet_times)
    if packed:  # decoders keep parts of such pictures between packets, even after a flush
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
        headless=table.headless + (len(lost) if not keyframe else 0),
    )


def _with_times(
    video: Media, table: Index, placed: dict[int, tuple[int, bool]], begin: int, packet_times: dict[int, int]
) -> Index:
    """Return the index with the pictures of `placed` (number of a packet -> display time, whether an edit list cuts it)
    that are shown from `begin` on, and the times of the packets."""
    shown = sorted(time for time, hidden in placed.values() if time >= begin and not hidden)
    if not shown:
        raise unreadable(video, NO_PICTURE)
    packets = tuple(
        packet._replace(time=packet_times.get(number, NEVER)) for number, packet in enumerate(table.packets)
    )
    return replace(table, packets=packets, times=tuple(shown), step=_usual_step(shown, table.step))


def _display_times(
    clock: _Clock, packets: Sequence[Packet], numbers: Sequence[int], preceding: int | None, lag: int
) -> tuple[int, list[tuple[int, bool]]] | None:
    """Return when the stream's first picture is shown, and the display times of the packets `numbers`, in ascending
    order, as pairs (time, whether an edit list cuts it). Which picture has which time is not decided here.

    Without usable times, they are counted from the number of `preceding` pictures; None if this number is not known.
    `lag` is how many more pictures the decoder has received than shown. So a decoding time is also the display time of
    an earlier picture: the one that is shown then."""
    for field, origin in sorted(clock.origins.items(), reverse=not (lag and clock.decoding)):
        stamps = [getattr(packets[number], field) for number in numbers]
        if None in stamps or 2 * len(set(stamps)) <= len(stamps):
            continue
        lead, start = 0, [getattr(packet, field) for packet in clock.head[: lag + 1]]
        if lag and stamps == sorted(stamps):
            step = _usual_step(stamps, max(1, clock.counted(1)))
            lead = start[-1] - start[0] if len(start) > lag and None not in start else lag * step
            # `lag` of the pictures that are decoded before an edit list's cut are shown after it.
            origin = max(origin, min(time for time in start if time is not None) + lead)
            numbers = [*numbers[lag:], *numbers[-1:] * lag]
            stamps = [*stamps[lag:], *(stamps[-1] + step * n for n in range(1, lag + 1))]
        times = zip(stamps, numbers, strict=True)
        return origin - lead, sorted((time - lead, packets[number].hidden) for time, number in times)
    return None if preceding is None else (0, [(clock.counted(preceding + n), False) for n in range(len(numbers))])


def _keyframe_before_window(table: Index, times: Sequence[int | None]) -> int:
    """Return the number of the last keyframe that is certainly shown before the window, or 0. All packets before
    a keyframe are shown before it, so its number is also the number of earlier pictures."""
    for number in range(len(times) - DELAY - 1, 0, -1):
        time = times[number + DELAY]
        if table.codec in SPLIT and table.packets[number].coded.key and time is not None and time <= table.start:
            return number
    return 0


def _display_order(video: Media, table: Index, keyframe: int) -> tuple[list[int], int, bool, int]:
    """Decode the packets from number `keyframe` on. Returns their numbers in display order, how many of these cannot
    change with later packets, whether decoding stopped at an error, and how many pictures the decoder delays."""
    import av

    by_time = {packet.pts: number for number, packet in enumerate(table.packets)}
    order: list[int | None] = []
    sure, broken = None, False

    def show(frames: list) -> None:
        order.extend(by_time.get(frame.pts) if (n := number_of(frame)) is None else n for frame in frames)

    with Reader(video, table, pictures=False) as reader:
        try:
            for _, packet in reader.packets(keyframe, len(table.packets)):
                show(reader.decode(packet))
            sure = len(order)
            show(reader.context.decode(None))
        except av.FFmpegError:
            sure, broken = len(order), True
    return list(dict.fromkeys(n for n in order if n is not None)), sure, broken, len(order) - sure


def _starts_with_keyframe(video: Media, table: Index) -> bool:
    """Whether the decoder reports the first packet's picture as a keyframe."""
    import av

    with Reader(video, table, pictures=False) as reader:
        try:
            frame = next(reader.frames(0, len(table.packets)), None)
        except (UserError, av.FFmpegError):
            return False
        return frame is not None and frame.key_frame and number_of(frame) in (0, None)


def _usual_step(times: Sequence[int], default: int) -> int:
    """Return the median time from one picture to the next, or `default` for too few pictures."""
    steps = sorted(b - a for a, b in pairwise(times))
    return steps[len(steps) // 2] if len(steps) > 1 else default


# --- The extent: how many pictures, how fast and how long -----------------------------------------------------------


def extent(video: Media) -> tuple[int, Fraction, float]:
    """Return (number of pictures, their average rate, seconds): from the header if an MP4's or AVI's index agrees,
    which is fast; otherwise by reading all packets, without decoding."""
    with opened(video) as (_, stream):
        rates = [stream.average_rate, stream.guessed_rate, _coded_rate(stream)]
        frames, seconds = stream.frames, float(stream.duration * stream.time_base) if stream.duration else 0.0
        trusted = False
        if seconds and frames and frames == len(stream.index_entries) and (stream.average_rate or 0) <= FASTEST:
            spread = stream.index_entries[frames - 1].timestamp - stream.index_entries[0].timestamp
            spread += spread // (frames - 1) if frames > 1 else 0  # assume the last picture is as long as the others
            trusted = abs(float(spread * stream.time_base) - seconds) <= 0.02 * seconds + 2 * seconds / frames
    if not trusted:
        frames, seconds = _counted(video)
    agreeing = (rate for rate in rates if rate and abs(float(rate) * seconds - frames) <= 1 + 0.02 * frames)
    rate = next(agreeing, None) or Fraction(frames / seconds if seconds else 1).limit_denominator(1001)
    return frames, Fraction(rate), seconds


def _counted(video: Media) -> tuple[int, float]:
    """Return the number of pictures and the seconds of a video, by reading its packets without decoding them."""
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
    (first, _), (last, duration) = ends
    step = Fraction(last - first, count - 1) if last > first else clock.counted(1)
    return count, float((last - first + _last_duration(duration, durations, last - first + step, step)) * clock.base)


def _last_duration(duration: int, durations: int, spread: Fraction, step: Fraction) -> Fraction:
    """Return how long the last picture is shown: its `duration`, or `step` if the container stores no durations or
    wrong ones, such as one clock tick."""
    return duration if duration and spread < 2 * durations < 4 * spread else step
