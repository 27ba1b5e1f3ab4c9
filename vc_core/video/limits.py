"""Limits of sizes and rates: without them, a typing error or a malicious file could fill the memory."""

from __future__ import annotations

import math
import os
import re
import struct
import zlib
from contextlib import suppress
from fractions import Fraction
from typing import IO, Annotated, Any

from ..configuration import Field, Spoken
from ..errors import UserError

SLOWEST, FASTEST = Fraction(1, 100), 1000
"""Frames per second: what the clocks of files can store, and what cameras record."""

LARGEST = 16384
"""Pixels per side: what H.264 can store."""

MEGAPIXELS = 100.0
"""The largest image or video frame to decode, in millions of pixels, unless `VARIABLE` sets another limit."""

VARIABLE = "VC_MAX_MEGAPIXELS"
"""An environment variable, so that it also applies in ComfyUI and in processes of `prepare` and `train`."""


def check_rate(what: str, rate: float | Fraction) -> None:
    """Raise UserError, starting with `what`, if the frames per second are not a number from 0.01 to 1000."""
    if not SLOWEST <= rate <= FASTEST:
        raise UserError(f"{what} must be {float(SLOWEST)} to {FASTEST} frames per second, got {float(rate):g}.")


def check_size(what: str, size: tuple[int, int]) -> None:
    """Raise UserError, starting with `what`, if a side of (height, width) is not 1 to 16384 pixels."""
    if not all(1 <= side <= LARGEST for side in size):
        raise UserError(f"{what} is {size[1]} by {size[0]} pixels. Each side must be 1 to {LARGEST} pixels.")


def most_pixels() -> int:
    """Return how many pixels an image or a frame may have. Raises UserError if the environment variable is invalid."""
    text = os.environ.get(VARIABLE, "").strip() or str(MEGAPIXELS)
    try:
        millions = float(text)
    except ValueError:
        millions = math.nan
    if not 0 < millions <= 2000:  # above it, libraries that count bytes in 31 bits fail
        raise UserError(f"The environment variable {VARIABLE} is {text!r}. Expected megapixels above 0, up to 2000.")
    return int(millions * 1e6)


def check_pixels(what: object, size: tuple[int, int], frames: int = 1) -> None:
    """Raise UserError, starting with `what`, if an image of (height, width) has more than `most_pixels`.

    Called before decoding, because a file of a few bytes can decode to gigabytes. `frames`: the number of images in it.
    """
    height, width = size
    if height * width > most_pixels() * frames:
        raise UserError(
            f"{what} is {width} by {height} pixels ({height * width / 1e6:.6g} megapixels). At most "
            f"{most_pixels() * frames / 1e6:g} megapixels are read, to protect the memory. Scale it down, or raise the "
            f"limit with --max-megapixels or the environment variable {VARIABLE}."
        )


def check_head(what: object, head: bytes) -> None:
    """`check_pixels` with the frame size in a file's first bytes: for some files that it does not decode, ffmpeg gives
    vague errors or none."""
    if head[:6] in (b"GIF87a", b"GIF89a") and len(head) >= 10:
        check_pixels(what, struct.unpack("<HH", head[6:10])[::-1])
    elif head.startswith(PNG) and len(head) >= 24:
        check_pixels(what, struct.unpack(">II", head[16:24])[::-1])
    elif match := re.match(rb"YUV4MPEG2 (?:\S+ )*?W(\d{1,9}) (?:\S+ )*?H(\d{1,9})\s", head):
        check_pixels(what, (int(match[2]), int(match[1])))


PNG = b"\x89PNG\r\n\x1a\n"

MOST_TEXT = 2**26
"""Bytes of all compressed texts and profiles of a PNG, unpacked: Pillow's limit. ffmpeg has none."""

_PACKED = {  # chunks of a PNG -> the bytes before their compressed part
    b"zTXt": rb"[^\0]*\0.",
    b"iCCP": rb"[^\0]*\0.",
    b"iTXt": rb"[^\0]*\0\x01.[^\0]*\0[^\0]*\0",
}


def check_texts(what: object, file: IO[bytes]) -> None:
    """Raise UserError, starting with `what`, for a PNG with more than `MOST_TEXT` bytes of text."""
    if file.read(8) != PNG:
        return
    remaining = MOST_TEXT
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind not in _PACKED:
            file.seek(length + 4, 1)
            continue
        data = file.read(length)
        file.seek(4, 1)
        if start := re.match(_PACKED[kind], data, re.DOTALL):
            with suppress(zlib.error):
                remaining -= len(zlib.decompressobj().decompress(data[start.end() :], remaining))
        if remaining <= 0:
            raise UserError(
                f"{what} contains more than {MOST_TEXT // 2**20} MB of text. It is not read, to protect the memory. "
                "Save it without the text."
            )


def decoder_options() -> dict[str, str]:
    """Return options that limit ffmpeg's decoders, whatever a file says. They also count the edges that they add."""
    return {"max_pixels": str(min(most_pixels() * 9 // 8 + 2**17, 2**31 - 1))}


def allow(megapixels: float | None) -> None:
    """Set the limit to the value of `--max-megapixels`, for this process and those it starts."""
    if megapixels is not None:
        os.environ[VARIABLE] = f"{megapixels:g}"


def megapixels_option() -> Any:
    """Return the type annotation of a command's parameter `--max-megapixels`."""
    from ..terminal import option

    help = f"largest image or frame to decode, in megapixels (default: {MEGAPIXELS:g}; or set {VARIABLE})"
    return option(Annotated[float, Field(gt=0, le=2000), Spoken("megapixels above 0, up to 2000", "N")] | None, help)
