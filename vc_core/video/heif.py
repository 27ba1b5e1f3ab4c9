"""Images in HEIF containers (.heic, .heif, .avif): find the primary image and how it is composed, from the boxes of
ISO/IEC 14496-12 and 23008-12. Phones cut an image into tiles, each stored as an item.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

STILLS = frozenset({b"heic", b"heix", b"heim", b"heis", b"mif1", b"mif2", b"avif", b"miaf", b"jpeg"})
"""Major brands of files with an image as main content; image sequences have other brands."""


@dataclass(frozen=True)
class PictureLayout:
    """How the primary image is composed.

    Attributes:
        size: (height, width) before rotation; None if the file does not say.
        tiles: item numbers of the tiles, row by row; a single number for an image without tiles.
        turns: operations on the composed image, in order: ("turn", quarters anticlockwise), ("mirror", 0 for upside
            down, 1 for left to right), ("crop", (left, top, width, height)).
    """

    size: tuple[int, int] | None
    tiles: tuple[int, ...]
    turns: tuple[tuple[str, Any], ...]

    def grid(self, tile: tuple[int, int]) -> tuple[int, int]:
        """Return (rows, columns) for tiles of (height, width). Raises ValueError if they do not fit the image size."""
        if len(self.tiles) == 1 or self.size is None:
            return 1, 1
        rows, columns = (-(-side // part) for side, part in zip(self.size, tile, strict=True))
        if rows * columns != len(self.tiles):
            raise ValueError(
                f"{len(self.tiles)} tiles do not match an image of {self.size[1]} by {self.size[0]} pixels"
            )
        return rows, columns

    def turned(self, pixels: np.ndarray) -> np.ndarray:
        """Return the pixels (H, W, C) as shown."""
        for kind, value in self.turns:
            if kind == "turn":
                pixels = np.rot90(pixels, value)
            elif kind == "mirror":
                pixels = np.flip(pixels, value)
            else:
                left, top, width, height = value
                pixels = pixels[top : top + height, left : left + width]
        return np.ascontiguousarray(pixels)


def is_heif(head: bytes) -> bool:
    """Whether a file with these first bytes is a HEIF file with an image."""
    return head[4:8] == b"ftyp" and head[8:12] in STILLS


def layout(data: bytes) -> PictureLayout:
    """Return the layout of a file's primary image from its bytes (the boxes before the image data are enough).

    Raises ValueError if boxes are missing or damaged, or if the image is derived in another way than as a grid.
    """
    try:
        meta = dict(_boxes(_first(data, b"meta")[4:]))
        primary = _number(meta[b"pitm"], 4, 4 if meta[b"pitm"][0] else 2)
        kind = dict(_items(meta[b"iinf"]))[primary]
        properties = [*_boxes(_first(meta[b"iprp"], b"ipco"))]
        numbers = dict(_associations(_first(meta[b"iprp"], b"ipma"))).get(primary, ())
        own = [properties[number - 1] for number in numbers if number]
        size = next((struct.unpack(">II", body[4:12])[::-1] for name, body in own if name == b"ispe"), None)
        turns = tuple(turn for name, body in own for turn in _turn(name, body, size))
        if kind in (b"iovl", b"iden", b"tmap"):
            raise ValueError(f"expected a grid of tiles, got an image composed as {kind.decode()!r}")
        tiles = (primary,)
        if kind == b"grid":
            tiles = dict(_references(meta[b"iref"], b"dimg"))[primary]
            if size is None or not tiles:
                raise KeyError(primary)
        return PictureLayout(size, tiles, turns)
    except (struct.error, IndexError, KeyError) as error:
        raise ValueError("its boxes are damaged") from error


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (kind, content) of each box."""
    at = 0
    while at + 8 <= len(data):
        length, kind, head = _number(data, at, 4), data[at + 4 : at + 8], 8
        if length == 1:
            length, head = _number(data, at + 8, 8), 16
        length = length or len(data) - at
        if length < head:
            raise KeyError(kind)
        yield kind, data[at + head : at + length]
        at += length


def _first(data: bytes, kind: bytes) -> bytes:
    for name, body in _boxes(data):
        if name == kind:
            return body
    raise KeyError(kind)


def _number(data: bytes, at: int, size: int) -> int:
    if at + size > len(data):
        raise IndexError(at)
    return int.from_bytes(data[at : at + size], "big")


def _items(iinf: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (number, kind) of each item."""
    for kind, body in _boxes(iinf[8 if iinf[0] else 6 :]):
        if kind == b"infe" and body[0] >= 2:
            wide = 4 if body[0] == 3 else 2
            yield _number(body, 4, wide), body[6 + wide : 10 + wide]


def _references(iref: bytes, of: bytes) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yield (item, the items that it refers to) for each reference of one kind."""
    wide = 4 if iref[0] else 2
    for kind, body in _boxes(iref[4:]):
        if kind == of:
            count = _number(body, wide, 2)
            yield _number(body, 0, wide), tuple(_number(body, wide + 2 + n * wide, wide) for n in range(count))


def _associations(ipma: bytes) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yield (item, the numbers of its properties, from 1) for each item."""
    wide, step, at = 4 if ipma[0] else 2, 2 if ipma[3] & 1 else 1, 8
    for _ in range(_number(ipma, 4, 4)):
        item, count = _number(ipma, at, wide), _number(ipma, at + wide, 1)
        at += wide + 1
        yield item, tuple(_number(ipma, at + n * step, step) & (0x7FFF if step == 2 else 0x7F) for n in range(count))
        at += count * step


def _turn(kind: bytes, body: bytes, size: tuple[int, int] | None) -> Iterator[tuple[str, Any]]:
    if kind == b"irot":
        yield "turn", body[0] & 3
    elif kind == b"imir":
        yield "mirror", body[0] & 1
    elif kind == b"clap" and size is not None:
        wn, wd, hn, hd, xn, xd, yn, yd = struct.unpack(">4IiIiI", body[:32])
        if 0 in (wd, hd, xd, yd):
            raise KeyError(kind)
        width, height = round(wn / wd), round(hn / hd)
        left, top = round((size[1] - width) / 2 + xn / xd), round((size[0] - height) / 2 + yn / yd)
        if min(left, top) < 0 or left + width > size[1] or top + height > size[0] or min(width, height) < 1:
            raise KeyError(kind)
        yield "crop", (left, top, width, height)
