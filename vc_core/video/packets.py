"""The index of a stream's packets, and a reader that reads them again and decodes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice, pairwise
from typing import Any, NamedTuple

from .coded import Coded
from .opening import Media, opened, unreadable
from .showing import SQUARE, UNSPECIFIED, Colour

TRANSPARENT = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""Decoders that ignore the alpha channel of WebM -> slower ones that decode it."""

SPLIT = frozenset({"h264", "hevc", "mpeg4", "mpeg2video", "flv", "vp8", "libvpx-vp9", "vp9", "libdav1d"})
"""Decoders with independent keyframes, as tested. Streams of other decoders are one segment."""

ONE_PER_PACKET = frozenset({"mpeg4", "mpeg1video", "mpeg2video", "flv"})
"""Decoders that output a frame for each packet, except for packets of a few bytes, which repeat the previous frame."""

FEW = 64
"""Packets of at most this many bytes contain no picture; the previous one stays visible."""

NEVER = float("-inf")
"""The time of a packet without a visible picture."""


class Packet(NamedTuple):
    """A packet as stored in its container, what its bytes say, and when its picture is shown; in the time base."""

    pts: int | None
    dts: int | None
    size: int
    place: int | None  # position in the file
    duration: int
    hidden: bool  # decoded but not shown, because an edit list cuts it
    coded: Coded
    time: int | float = NEVER


@dataclass(frozen=True)
class Index:
    """The packets of a window of a stream, in decoding order, starting at a keyframe."""

    codec: str
    time_base: Fraction
    origin: int  # when the stream's first picture is shown
    start: Fraction  # of the window, in the stream's time base
    step: int  # usual time from one picture to the next
    packets: tuple[Packet, ...]  # the first one is a keyframe
    times: tuple[int, ...]  # of their frames, in display order
    end: int | None  # where the stream ends; None if it continues after the window
    seek: int | None = None  # time to seek to for the first packet; None for the stream's beginning
    skipped: int = 0  # packets before the first one, if they were read from the stream's beginning
    headless: int = 0  # packets before the first keyframe, or shown before it, which cannot be decoded
    seekable: bool = True  # packets have times that seeking finds
    cut: bool = False  # also decode packets that an edit list cuts, because it cuts pictures at other times
    extradata: bytes = b""  # the codec's headers
    aspect: Fraction = SQUARE  # width of a stored pixel divided by its height
    colour: Colour = UNSPECIFIED  # as the container says

    @property
    def reordered(self) -> bool:
        """Whether display order differs from decoding order, as with B-frames."""
        return any(a > b for a, b in pairwise(packet.time for packet in self.packets if packet.time != NEVER))


def same(a: Any, b: Any) -> bool:
    """Whether two packets, of the index or of PyAV, are the same. Positions, and times that libavformat invents, depend
    on the seek position."""
    times = [x == y for x, y in ((a.pts, b.pts), (a.dts, b.dts)) if None not in (x, y)]
    places = [a.place == b.pos] if None not in (a.place, b.pos) else []
    return a.size == b.size and all(places) and (any(times) if times else any(places))


def packets_of(container, stream) -> Iterator:
    """Yield the packets of a stream from the current position, without the empty packets at the end."""
    import av

    any_read = False
    while True:
        try:
            for packet in container.demux(stream):
                if packet.size:
                    any_read = True
                    yield packet
            return
        except IndexError:  # PyAV raises it for packets of a stream that appears only partway through the file
            continue
        except av.InvalidDataError:  # for a truncated packet, some formats raise this, others report the end
            if not any_read:
                raise
            return


class Reader(ExitStack):
    """Read an indexed video's packets again and decode them with `context`: for exact block `vectors`, for `pictures`,
    or only for their order."""

    def __init__(self, video: Media, table: Index, vectors: bool = False, pictures: bool = True):
        super().__init__()
        self.video, self.table, self.vectors, self.pictures = video, table, vectors, pictures
        self.context: Any = None

    def packets(self, first: int, last: int) -> Iterator[tuple[int, Any]]:
        """Yield (number in the index, packet) for packets `first` to `last` (exclusive).

        Each packet carries its number, which `number_of` reads from the decoded frame. If seeking is inaccurate, the
        packets are read from the beginning with a fresh decoder.
        """
        number = None
        for seek in (False,) if first == 0 and self.table.seek is None else (True, False):
            if self.context is None or not seek:
                self._open()
            elif self.context.is_open:  # used by an earlier segment
                self.context.flush_buffers()
            for number, packet in enumerate(islice(self._from(first, seek), last - first), first):
                if self.table.cut and packet.is_discard:
                    packet = _undiscarded(packet)
                # A new object: PyAV identifies it by its address, and small integers are shared, so another decoder
                # would remove this one's entry.
                packet.opaque = (number,)
                yield number, packet
            if number is not None:
                return
        raise unreadable(self.video, "its packets differ when they are read again")

    def frames(self, first: int, last: int, needed: Callable[[Packet], bool] = lambda packet: True) -> Iterator:
        """Yield the decoded frames of the `needed` packets."""
        for number, packet in self.packets(first, last):
            if needed(self.table.packets[number]):
                yield from self.decode(packet)
        yield from self.context.decode(None)

    def decode(self, packet) -> list:
        """Return the decoded frames of a packet. Some decoders raise an error for a packet without a picture."""
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
        context = self.stream.codec_context
        better = TRANSPARENT.get(context.name)
        if better in av.codecs_available and self.stream.metadata.get("alpha_mode") == "1":
            options, context = context.options, av.CodecContext.create(better, "r")
            context.options = options
        # Not frame threads: they corrupt exported vectors, and they keep running between calls. If the host has enabled
        # PyAV's logging, a damaged file then causes a deadlock: a thread waits for the interpreter's lock while closing
        # the file waits for the thread.
        context.thread_type = "SLICE"
        context.flags |= Flags.copy_opaque
        if self.vectors:
            context.flags2 |= Flags2.export_mvs  # takes effect only before the first decode
        if self.vectors or not self.pictures:
            context.options = {**context.options, "skip_loop_filter": "all"}  # wrong pixels, but correct vectors
        self.context = context

    def _from(self, first: int, seek: bool) -> Iterator:
        """Yield the packets from number `first` on, after seeking or from the beginning; none if it is not found."""
        import av

        start, table = self.table.packets[first], self.table
        if seek:
            time = start.pts if start.dts is None else start.dts
            if not table.seekable or time is None:
                return
            try:
                self.container.seek(time, stream=self.stream, backward=True)
            except av.FFmpegError:
                return
        packets = packets_of(self.container, self.stream)
        if not seek and table.seek is None:
            yield from islice(packets, table.skipped + first, None)
        for packet in packets:
            if same(start, packet):
                yield packet
                yield from packets
            elif seek and None not in (packet.dts, start.dts) and packet.dts > start.dts:
                return


def number_of(frame) -> int | None:
    """Return the number of a frame's packet. The few decoders that do not report it (None) do not reorder frames."""
    return None if frame.opaque is None else frame.opaque[0]


def _undiscarded(packet):
    """Return a copy of a packet without its discard flag, so that it is decoded."""
    import av

    copy = av.Packet(bytes(packet))
    copy.pts, copy.dts, copy.time_base, copy.is_keyframe = packet.pts, packet.dts, packet.time_base, packet.is_keyframe
    return copy
