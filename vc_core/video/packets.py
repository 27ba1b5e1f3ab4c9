"""The packets of a stream that were found once, read again, and the decoder that they go to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice, pairwise
from typing import Any, NamedTuple

from .coded import Coded
from .opening import Media, opened, unreadable
from .showing import SQUARE, UNTOLD, Colour

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
    """A packet as its container gives it, what its bytes say, and when its picture is shown; in the time base."""

    pts: int | None
    dts: int | None
    size: int
    place: int | None  # in the file
    duration: int
    hidden: bool  # decoded, but not shown: before the cut of an edit list
    coded: Coded
    time: int | float = NEVER


@dataclass(frozen=True)
class Index:
    """The packets of a window of a stream, in decoding order, from a keyframe on."""

    codec: str
    time_base: Fraction
    origin: int  # when the stream's first picture is shown
    start: Fraction  # of the window, in the stream's time base
    step: int  # from a picture to the next one, as a rule
    packets: tuple[Packet, ...]  # the first one is a keyframe
    times: tuple[int, ...]  # of their frames, in the order in which they are shown
    end: int | None  # where the stream ends, or None where it goes on beyond the window
    seek: int | None = None  # where the first packet is sought; None for the stream's beginning
    skipped: int = 0  # packets of the stream before the first one, where they were read from the beginning
    headless: int = 0  # packets before the first keyframe, or shown before it, which cannot be decoded
    sought: bool = True  # packets have times by which they are found when they are sought
    cut: bool = False  # packets that an edit list leaves out are decoded nonetheless: it cuts pictures, at other times
    extradata: bytes = b""  # the codec's headers
    aspect: Fraction = SQUARE  # a stored pixel's width over its height
    colour: Colour = UNTOLD  # what the container says of it

    @property
    def reordered(self) -> bool:
        """Frames are shown in another order than they are decoded in, as with B-frames."""
        return any(a > b for a, b in pairwise(packet.time for packet in self.packets if packet.time != NEVER))


def same(a: Any, b: Any) -> bool:
    """Two packets, of the index or of PyAV, are the same. Times that libavformat makes up, and positions, depend on
    where it sought."""
    times = [x == y for x, y in ((a.pts, b.pts), (a.dts, b.dts)) if None not in (x, y)]
    places = [a.place == b.pos] if None not in (a.place, b.pos) else []
    return a.size == b.size and all(places) and (any(times) if times else any(places))


def packets_of(container, stream) -> Iterator:
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


class Reader(ExitStack):
    """An opened video whose packets are read again, and the decoder of its stream, `context`: for the `vectors` of its
    blocks, exactly, for its `pictures`, or for their order alone."""

    def __init__(self, video: Media, table: Index, vectors: bool = False, pictures: bool = True):
        super().__init__()
        self.video, self.table, self.vectors, self.pictures = video, table, vectors, pictures
        self.context: Any = None

    def packets(self, first: int, last: int) -> Iterator[tuple[int, Any]]:
        """(number in the index, packet) of its packets `first` to `last` (exclusive).

        Each packet carries its number, which `number_of` tells of the frame that the decoder makes of it. Where seeking
        is inaccurate, they are read from the beginning, by a decoder that never sought.
        """
        number = None
        for seek in (False,) if first == 0 and self.table.seek is None else (True, False):
            if self.context is None or not seek:
                self._open()
            elif self.context.is_open:  # from an earlier segment
                self.context.flush_buffers()
            for number, packet in enumerate(islice(self._from(first, seek), last - first), first):
                if self.table.cut and packet.is_discard:
                    packet = _kept(packet)
                # In an object of its own: PyAV knows them by their address, and small numbers are the same everywhere,
                # so that another decoder would take this one's away.
                packet.opaque = (number,)
                yield number, packet
            if number is not None:
                return
        raise unreadable(self.video, "its packets are not the same when they are read again")

    def frames(self, first: int, last: int, needed: Callable[[Packet], bool] = lambda packet: True) -> Iterator:
        """What the decoder makes of those packets that are needed."""
        for number, packet in self.packets(first, last):
            if needed(self.table.packets[number]):
                yield from self.decode(packet)
        yield from self.context.decode(None)

    def decode(self, packet) -> list:
        """The frames that the decoder gives for a packet; some call it an error that a message holds no picture."""
        import av

        try:
            return self.context.decode(packet)
        except av.InvalidDataError:
            if packet.size > FEW:
                raise
            return []

    def _open(self) -> None:
        import av
        from av.codec.context import Flags, Flags2

        self.close()
        self.container, self.stream = self.enter_context(opened(self.video))
        made = self.stream.codec_context
        better = TRANSPARENT.get(made.name)
        if better in av.codecs_available and self.stream.metadata.get("alpha_mode") == "1":
            options, made = made.options, av.CodecContext.create(better, "r")
            made.options = options
        # Not frame threads: they corrupt exported vectors; and they work on between calls, so where the host has
        # switched PyAV's logging on, a damaged file makes one of them wait for the interpreter's lock while closing the
        # file waits for it: a hang.
        made.thread_type = "SLICE"
        made.flags |= Flags.copy_opaque
        if self.vectors:
            made.flags2 |= Flags2.export_mvs  # takes effect only before the first decode
        if self.vectors or not self.pictures:
            made.options = {**made.options, "skip_loop_filter": "all"}  # spoils the pictures, leaves the vectors
        self.context = made

    def _from(self, first: int, seek: bool) -> Iterator:
        """The packets from that number on, sought or read from the beginning; none where it is missed."""
        import av

        start, table = self.table.packets[first], self.table
        if seek:
            time = start.pts if start.dts is None else start.dts
            if not table.sought or time is None:
                return
            try:
                self.container.seek(time, stream=self.stream, backward=True)
            except av.FFmpegError:
                return
        found = packets_of(self.container, self.stream)
        if not seek and table.seek is None:
            yield from islice(found, table.skipped + first, None)
        for packet in found:
            if same(start, packet):
                yield packet
                yield from found
            elif seek and None not in (packet.dts, start.dts) and packet.dts > start.dts:
                return


def number_of(frame) -> int | None:
    """The number of the packet that a frame was decoded from; few decoders do not tell, and none of those reorders."""
    return None if frame.opaque is None else frame.opaque[0]


def _kept(packet):
    """A copy of a packet that its decoder does not leave out."""
    import av

    copy = av.Packet(bytes(packet))
    copy.pts, copy.dts, copy.time_base, copy.is_keyframe = packet.pts, packet.dts, packet.time_base, packet.is_keyframe
    return copy
