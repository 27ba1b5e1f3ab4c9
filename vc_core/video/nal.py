"""The units that H.264 and HEVC streams consist of, and what H.264's sequence headers tell: how many frames one may
refer to (ITU-T H.264, 7.3)."""

from __future__ import annotations

from collections.abc import Iterator


def length_size(extradata: bytes, hevc: bool = False) -> int:
    """Bytes of the length before each unit, 0 where start codes part them."""
    at, least = (21, 22) if hevc else (4, 6)
    return (extradata[at] & 3) + 1 if len(extradata) > least and extradata[0] == 1 else 0


def units(data: bytes | memoryview, length: int) -> Iterator[bytes | memoryview]:
    """The NAL units of a packet; cut off ones end the iteration."""
    if length:
        at = 0
        while at + length < len(data):
            size = int.from_bytes(data[at : at + length], "big")
            yield data[at + length : at + length + max(1, size)]
            at += length + size
        return
    whole = bytes(data)
    at = whole.find(b"\0\0\1")
    while 0 <= at < len(whole) - 3:
        following = whole.find(b"\0\0\1", at + 3)
        yield whole[at + 3 : following if following >= 0 else len(whole)]
        at = following


def sequence_headers(extradata: bytes) -> list[bytes]:
    """The sequence parameter sets in a stream's extradata, of either form."""
    if not length_size(extradata):
        return [bytes(unit) for unit in units(extradata, 0) if unit[0] & 31 == 7]
    found, at = [], 6
    for _ in range(extradata[5] & 31):
        size = int.from_bytes(extradata[at : at + 2], "big")
        found.append(extradata[at + 2 : at + 2 + size])
        at += 2 + size
    return found


class Bits:
    """Reads a header bit by bit. Raises ValueError where it is cut off."""

    def __init__(self, data: bytes):
        data = data.replace(b"\0\0\3", b"\0\0")  # emulation prevention
        self.number, self.left = int.from_bytes(data, "big"), 8 * len(data)

    def u(self, count: int) -> int:
        if count > self.left:
            raise ValueError("the header is cut off")
        self.left -= count
        return self.number >> self.left & (1 << count) - 1

    def ue(self) -> int:
        zeros = 0
        while not self.u(1):
            zeros += 1
        return (1 << zeros) - 1 + self.u(zeros)

    def se(self) -> int:
        code = self.ue()
        return (code + 1) // 2 if code % 2 else -(code // 2)


# Profiles whose headers tell the chroma format and the scaling matrices.
_HIGH = {100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135}


def references(header: bytes) -> tuple[int, bool]:
    """(frames that a frame may refer to, whether all are coded as whole frames) of a sequence parameter set.

    Raises ValueError where it is cut off.
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
