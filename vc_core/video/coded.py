"""Read the headers of coded pictures, independent of what the container says about them, and H.264's sequence headers:
how many reference frames a frame may use (ITU-T H.264, 7.3)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple


class Coded(NamedTuple):
    """What the bytes of a packet say about its picture."""

    key: bool  # decoding can start here
    disposable: bool  # no other picture refers to it
    later: bool | None = None  # it may refer to pictures shown later (a B-picture); None: unknown
    pictures: int = 1  # more than one if others are packed into the same packet


NOT_CODED = 8
"""The most bytes of an MPEG-4 picture that is marked as not coded."""


def packet_parser(codec: str, extradata: bytes) -> Callable[..., Coded]:
    """Return a function that parses an av.Packet of a stream: its bytes, or else its container's flags."""
    read = _READERS.get(codec, lambda data: None)
    size = length_size(extradata, codec == "hevc") if codec in ("h264", "hevc") else None

    def of(packet) -> Coded:
        try:
            data = memoryview(packet)
            coded = read(data if size is None else units(data, size))
        except (ValueError, IndexError):  # too few bytes for a picture
            coded = None
        return coded or Coded(packet.is_keyframe, packet.is_disposable)

    return of


def _h264(nal_units: Iterator[bytes]) -> Coded | None:
    for unit in nal_units:
        kind, referred = unit[0] & 31, unit[0] >> 5 & 3
        if kind in (1, 2, 5):  # slices
            bits = Bits(bytes(unit[1:24]))
            bits.ue()
            # Containers also mark recovery points as keyframes, after which the picture recovers only gradually.
            return Coded(kind == 5, referred == 0, bits.ue() % 5 == 1)
    return None


def _hevc(nal_units: Iterator[bytes]) -> Coded | None:
    """HEVC, from the first slice. Its first bits do not say whether the picture refers to later ones."""
    kind = next((kind for unit in nal_units if (kind := unit[0] >> 1 & 63) < 32), None)
    return None if kind is None else Coded(16 <= kind <= 21, False)


def _mpeg4(data: memoryview) -> Coded | None:
    """MPEG-4 part 2 (ISO/IEC 14496-2, 6.2.5). XviD and DivX pack B-pictures into the packet of the picture before."""
    kinds = [start[1][0] >> 6 for start in re.finditer(b"\0\0\1\xb6(?=(..))", data, re.DOTALL)]
    coded = len(data) > NOT_CODED  # otherwise it replaces a packed B-picture, whatever kind it says
    return Coded(coded and kinds[0] == 0, kinds == [2], 2 in kinds, len(kinds)) if kinds else None


def _mpeg2(data: memoryview) -> Coded | None:
    """MPEG-1 and MPEG-2 (ISO/IEC 13818-2, 6.2.3); two fields count as one picture."""
    if start := re.search(b"\0\0\1\0.(.)", data, re.DOTALL):
        kind = start[1][0] >> 3 & 7
        return Coded(kind == 1, kind == 3, kind == 3)
    return None


def _flv1(data: memoryview) -> Coded:
    """Sorenson's H.263, as in Flash video: 0 is an I-picture, 2 a P-picture that no other picture refers to."""
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
    return Coded(not bits.u(1) and not bits.u(1), False, False)  # not a repeated picture, and a keyframe


def _av1(data: memoryview) -> Coded | None:
    """Read AV1's OBUs (5.3, 5.9.2) up to the first frame header."""
    at = 0
    while at < len(data):
        kind, extended, sized = data[at] >> 3 & 15, data[at] >> 2 & 1, data[at] >> 1 & 1
        at += 1 + extended
        size, shift, more = 0 if sized else len(data) - at, 0, sized
        while more:
            size |= (data[at] & 127) << shift
            at, shift, more = at + 1, shift + 7, data[at] & 128
        if kind in (3, 6):  # a frame header, alone or with its frame
            return Coded(data[at] >> 5 == 0, False, False)
        at += size
    return None


_READERS: dict[str, Callable[[Any], Coded | None]] = {
    "h264": _h264,
    "hevc": _hevc,
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
"""Decoder -> a function that reads a packet, or its NAL units; it returns None if the bytes do not say."""


# --- H.264 and HEVC: units, and H.264's headers ---------------------------------------------------------------------


def length_size(extradata: bytes, hevc: bool = False) -> int:
    """Bytes of the length field before each unit; 0 if start codes separate the units."""
    at, least = (21, 22) if hevc else (4, 6)
    return (extradata[at] & 3) + 1 if len(extradata) > least and extradata[0] == 1 else 0


def units(data: bytes | memoryview, length: int) -> Iterator[bytes | memoryview]:
    """The NAL units of a packet; a truncated unit ends the iteration."""
    if length:
        at = 0
        while at + length < len(data):
            size = int.from_bytes(data[at : at + length], "big")
            yield data[at + length : at + length + max(1, size)]
            at += length + size
        return
    yield from filter(None, bytes(data).split(b"\0\0\1")[1:])


def sequence_headers(extradata: bytes) -> list[bytes]:
    """H.264's sequence parameter sets in a stream's extradata, in either form (avcC or start codes)."""
    if length_size(extradata):
        return list(islice(units(extradata[6:], 2), extradata[5] & 31))
    return [unit for unit in units(extradata, 0) if unit[0] & 31 == 7]


class Bits:
    """Read a header bit by bit. Raises ValueError if it is truncated."""

    def __init__(self, data: bytes):
        data = data.replace(b"\0\0\3", b"\0\0")  # emulation prevention
        self.number, self.remaining = int.from_bytes(data, "big"), 8 * len(data)

    def u(self, count: int) -> int:
        if count > self.remaining:
            raise ValueError("the header is truncated")
        self.remaining -= count
        return self.number >> self.remaining & (1 << count) - 1

    def ue(self) -> int:
        zeros = 0
        while not self.u(1):
            zeros += 1
        return (1 << zeros) - 1 + self.u(zeros)

    def se(self) -> int:
        code = self.ue()
        return (code + 1) // 2 if code % 2 else -(code // 2)


# Profiles with the chroma format and the scaling matrices in their headers.
_HIGH = {100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135}


def references(header: bytes) -> tuple[int, bool]:
    """Return (number of reference frames, whether no frame is coded as two fields) of a sequence parameter set.

    Raises ValueError if it is truncated.
    """
    bits = Bits(header[1:])
    profile = bits.u(8)
    bits.u(16)
    bits.ue()
    if profile in _HIGH:
        chroma = bits.ue()
        bits.u(1 if chroma == 3 else 0)
        bits.ue(), bits.ue(), bits.u(1)
        if bits.u(1):
            for number in range(12 if chroma == 3 else 8):
                if bits.u(1):
                    _skip_scaling_list(bits, 16 if number < 6 else 64)
    bits.ue()
    order = bits.ue()
    if order == 0:
        bits.ue()
    elif order == 1:
        bits.u(1), bits.se(), bits.se()
        for _ in range(bits.ue()):
            bits.se()
    frames = bits.ue()
    bits.u(1), bits.ue(), bits.ue()
    return frames, bool(bits.u(1))


def _skip_scaling_list(bits: Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + bits.se()) % 256
        last = following or last
