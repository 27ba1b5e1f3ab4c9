"""What coded pictures say of themselves in their first bytes, whatever their container says of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from .nal import Bits, length_size, units


class Coded(NamedTuple):
    """The picture of a packet.

    Attributes:
        key: decoding can start here.
        disposable: no other picture refers to it.
        later: it may refer to pictures that are shown later (a B-picture); None: not told.
        pictures: so many of them, more than one where others are packed into the packet.
    """

    key: bool
    disposable: bool
    later: bool | None = None
    pictures: int = 1


NOT_CODED = 8
"""Bytes, at most, of a picture of MPEG-4 that says it is not coded."""

Reader = Callable[[memoryview], Coded | None]
"""From a packet to what it holds; None where its bytes do not tell."""


def reader(codec: str, extradata: bytes) -> Callable[..., Coded]:
    """A function from an av.Packet of a stream to what it holds: what its bytes say, else what the container says."""
    read = _readers(extradata).get(codec)

    def of(packet) -> Coded:
        told = None
        if read is not None:
            try:
                told = read(memoryview(packet))
            except (ValueError, IndexError):  # too few bytes for a picture
                told = None
        return Coded(packet.is_keyframe, packet.is_disposable) if told is None else told

    return of


def _readers(extradata: bytes) -> dict[str, Reader]:
    def h264(data: memoryview) -> Coded | None:
        for unit in units(data, length_size(extradata)):
            kind, referred = unit[0] & 31, unit[0] >> 5 & 3
            if kind in (1, 2, 5):  # slices
                bits = Bits(bytes(unit[1:24]))
                bits.ue()
                # Containers also call pictures keyframes from which a picture recovers only by and by.
                return Coded(kind == 5, referred == 0, bits.ue() % 5 == 1)
        return None

    def hevc(data: memoryview) -> Coded | None:
        for unit in units(data, length_size(extradata, hevc=True)):
            kind = unit[0] >> 1 & 63
            if kind < 32:  # slices; whether they refer to later pictures, their first bits do not tell
                return Coded(16 <= kind <= 21, False)
        return None

    return {
        "h264": h264,
        "hevc": hevc,
        "mpeg4": _mpeg4,
        "mpeg1video": _mpeg2,
        "mpeg2video": _mpeg2,
        "flv": _flv1,
        "vp8": lambda data: Coded(not data[0] & 1, False, False),
        "libvpx-vp9": _vp9,
        "vp9": _vp9,
        "libdav1d": _av1,
        "av1": _av1,
    }


def _mpeg4(data: memoryview) -> Coded | None:
    """MPEG-4 part 2 (ISO/IEC 14496-2, 6.2.5). XviD and DivX pack B-pictures into the packet of the one before."""
    found = [follow[0] >> 6 for follow in _after(bytes(data), b"\0\0\1\xb6")]
    coded = len(data) > NOT_CODED  # else it stands for a B-picture that was packed, whatever it calls itself
    return Coded(coded and found[0] == 0, found == [2], 2 in found, len(found)) if found else None


def _mpeg2(data: memoryview) -> Coded | None:
    """MPEG-1 and MPEG-2 (ISO/IEC 13818-2, 6.2.3); a picture of two fields is one."""
    for follow in _after(bytes(data), b"\0\0\1\0"):
        kind = follow[1] >> 3 & 7
        return Coded(kind == 1, kind == 3, kind == 3)
    return None


def _after(data: bytes, code: bytes) -> Iterator[bytes]:
    """The two bytes after each start code."""
    at = data.find(code)
    while at >= 0 and len(data) >= at + len(code) + 2:
        yield data[at + len(code) : at + len(code) + 2]
        at = data.find(code, at + len(code))


def _flv1(data: memoryview) -> Coded:
    """Sorenson's H.263, as in Flash video: 0 is an I-picture, 2 a P-picture that none refers to."""
    bits = Bits(bytes(data[:12]))
    bits.u(30)
    bits.u({0: 16, 1: 32}.get(bits.u(3), 0))
    kind = bits.u(2)
    return Coded(kind == 0, kind == 2, False)


def _vp9(data: memoryview) -> Coded:
    bits = Bits(bytes(data[:2]))
    bits.u(2)
    if bits.u(2) == 3:
        bits.u(1)
    return Coded(not bits.u(1) and not bits.u(1), False, False)  # no repetition of a picture, and a key


def _av1(data: memoryview) -> Coded | None:
    """AV1's OBUs (5.3, 5.9.2) up to the first frame header."""
    at = 0
    while at < len(data):
        kind, extended, sized = data[at] >> 3 & 15, data[at] >> 2 & 1, data[at] >> 1 & 1
        at += 1 + extended
        size = len(data) - at
        if sized:
            size, shift = 0, 0
            while True:
                size |= (data[at] & 127) << shift
                at, shift = at + 1, shift + 7
                if not data[at - 1] & 128:
                    break
        if kind in (3, 6):  # a frame header, alone or with its frame
            return Coded(data[at] >> 5 == 0, False, False)
        at += size
    return None
