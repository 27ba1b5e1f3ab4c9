"""The packets of a stream that were found once, read again, and the decoder that they go to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

from .hdr import Colour
from .showing import NO_COLOUR, SQUARE

TRANSPARENT = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""Decoders that leave out the alpha channel of WebM -> those that decode it, more slowly."""

SPLIT = frozenset({"h264", "hevc", "mpeg4", "mpeg2video", "flv", "vp8", "libvpx-vp9", "vp9", "libdav1d"})
"""Decoders whose keyframes were tested to stand by themselves; what others decode is one segment."""

WHOLE = frozenset({"mpeg4", "mpeg1video", "mpeg2video", "flv"})
"""Decoders that give a picture for every packet, but for one of a few bytes, which says: the same one again."""

FEW = 64
"""Bytes: so few hold no picture, but say that the one before is shown on."""

NEVER = float("-inf")
"""The time of a packet whose picture is not shown, or that holds none."""


class Packet(NamedTuple):
    """A packet of the index; times in the stream's time base."""

    pts: int | float  # when its picture is shown, or NEVER
    mark: tuple  # what tells it from others when it is read again
    key: bool  # decoding can start here
    disposable: bool  # no other frame refers to it


@dataclass(frozen=True)
class Index:
    """The packets of a window of a stream, in decoding order, from a keyframe on.

    Attributes:
        origin: when the stream's first picture is shown.
        start: of the window, in the stream's time base.
        step: from a picture to the next one, as a rule.
        packets: the window's; the first one is a keyframe.
        times: of their frames, in the order in which they are shown.
        end: where the stream ends, or None where it goes on beyond the window.
        seek: where the first packet is sought; None for the stream's beginning.
        skipped: packets of the stream before the first one, where they were read from the beginning.
        headless: packets before the first keyframe, or shown before it, which cannot be decoded.
        sought: packets have marks by which they are found when they are sought.
        cut: packets that an edit list leaves out are decoded nonetheless: it cuts pictures, at other times.
        extradata: the codec's headers.
        aspect: a stored pixel's width over its height.
        colour: what the container says of it.
    """

    codec: str
    time_base: Fraction
    origin: int
    start: Fraction
    step: int
    packets: tuple[Packet, ...]
    times: tuple[int, ...]
    end: int | None
    seek: int | None
    skipped: int
    headless: int
    sought: bool = True
    cut: bool = False
    extradata: bytes = b""
    aspect: Fraction = SQUARE
    colour: Colour = NO_COLOUR

    @property
    def reordered(self) -> bool:
        """Frames are shown in another order than they are decoded in, as with B-frames."""
        shown = [packet.pts for packet in self.packets if packet.pts != NEVER]
        return any(a > b for a, b in pairwise(shown))


def mark(packet) -> tuple:
    """(pts, dts, size, position in the file) of a packet; some are None."""
    return packet.pts, packet.dts, packet.size, packet.pos


def _same(a: tuple, b: tuple) -> bool:
    """Two marks are of the same packet. Times that libavformat makes up, and positions, depend on where it sought."""
    times = [x == y for x, y in zip(a[:2], b[:2], strict=True) if None not in (x, y)]
    places = [x == y for x, y in zip(a[3:], b[3:], strict=True) if None not in (x, y)]
    return a[2] == b[2] and all(places) and (any(times) if times else any(places))


def demuxed(container, stream) -> Iterator:
    """The packets of a stream of an opened video from where it stands, without the empty ones at the end."""
    import av

    found = False
    while True:
        try:
            for packet in container.demux(stream):
                if packet.size:
                    found = True
                    yield packet
            return
        except IndexError:  # PyAV's, of another stream's packet, where that stream only appears on the way
            continue
        except av.InvalidDataError:  # some formats say so of a packet that is cut off, others that the file ends
            if not found:
                raise
            return


CHANGED = "its packets are not the same when they are read again"


class Missed(Exception):
    """Packets were not found where they were sought."""


def again(container, stream, table: Index, first: int, last: int, seek: bool) -> Iterator:
    """(number in the index, packet) of its packets `first` to `last` (exclusive), read again from an opened video.

    Each packet carries its number, which `number_of` tells of the frame that a decoder makes of it.

    Raises Missed before the first one.
    """
    import av

    start, number = table.packets[first].mark, first
    passed = 0
    if seek:
        time = start[0] if start[1] is None else start[1]
        if not table.sought or time is None:
            raise Missed
        try:
            container.seek(time, stream=stream, backward=True)
        except av.FFmpegError as error:
            raise Missed from error
    for packet in demuxed(container, stream):
        passed += 1
        if number == first:
            if table.seek is None and not seek:
                if passed <= table.skipped + first:
                    continue
            elif not _same(start, mark(packet)):
                if seek and None not in (packet.dts, start[1]) and packet.dts > start[1]:
                    raise Missed
                continue
        if table.cut and packet.is_discard:
            packet = _shown(packet)
        # In an object of its own: PyAV knows them by their address, and small numbers are the same everywhere, so that
        # a decoder in another thread would take this one's away.
        packet.opaque = (number,)
        yield number, packet
        number += 1
        if number == last:
            return
    if number == first:
        raise Missed


def number_of(frame) -> int | None:
    """The number of the packet that a frame was decoded from; few decoders do not tell, and none of those reorders."""
    return None if frame.opaque is None else frame.opaque[0]


def _shown(packet):
    """A copy of a packet that its decoder does not leave out."""
    import av

    copy = av.Packet(bytes(packet))
    copy.pts, copy.dts, copy.time_base, copy.is_keyframe = packet.pts, packet.dts, packet.time_base, packet.is_keyframe
    return copy


def decoded(context, packet) -> list:
    """The frames that a decoder gives for a packet; some call it an error that a message holds no picture."""
    import av

    try:
        return context.decode(packet)
    except av.InvalidDataError:
        if packet.size > FEW:
            raise
        return []


def decoder(stream, vectors: bool = False, alone: bool = True, pictures: bool = True):
    """The decoder of a stream, made ready before its first packet.

    Args:
        vectors: it exports block vectors, exactly.
        alone: no other decoders run beside it.
        pictures: the pictures are wanted, not only their order or their vectors.
    """
    import av
    from av.codec.context import Flags, Flags2

    made = stream.codec_context
    better = TRANSPARENT.get(made.name)
    if better in av.codecs_available and stream.metadata.get("alpha_mode") == "1":
        options, made = made.options, av.CodecContext.create(better, "r")
        made.options = options
    # Not frame threads: they corrupt exported vectors; and they work on between calls, so where the host has
    # switched PyAV's logging on, a damaged file makes one of them wait for the interpreter's lock while closing the
    # file waits for it: a hang.
    made.thread_type = "SLICE" if alone else "NONE"
    if not alone:
        made.thread_count = 1
    made.flags |= Flags.copy_opaque
    if vectors:
        made.flags2 |= Flags2.export_mvs  # takes effect only before the first decode
    if vectors or not pictures:
        made.options = {**made.options, "skip_loop_filter": "all"}  # spoils the pictures, leaves the vectors
    return made
