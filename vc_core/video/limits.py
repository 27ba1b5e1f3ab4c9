"""The sizes and rates that are taken; beyond them a slip of the finger, or a file's word, would fill the memory."""

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
"""Frames a second: what the clocks of files hold, and what cameras record."""

LARGEST = 16384
"""Pixels of a side: what H.264 can store."""

MEGAPIXELS = 100.0
"""Millions of pixels of a picture, or of a frame of a video, that are decoded unless `VARIABLE` says otherwise."""

VARIABLE = "VC_MAX_MEGAPIXELS"
"""Of the environment, so that it counts in ComfyUI and in processes of `prepare` and `train` too."""


def check_rate(what: str, rate: float | Fraction) -> None:
    """Raises UserError, which begins with `what`, for frames a second that are no number from 0.01 to 1000."""
    if not SLOWEST <= rate <= FASTEST:
        raise UserError(f"{what} is {float(rate):g} frames a second: give a number from {float(SLOWEST)} to {FASTEST}.")


def check_size(what: str, size: tuple[int, int]) -> None:
    """Raises UserError, which begins with `what`, where a side of (height, width) is not 1 to 16384 pixels."""
    if not all(1 <= side <= LARGEST for side in size):
        raise UserError(f"{what} is {size[1]} by {size[0]} pixels: expected sides of 1 to {LARGEST}.")


def most_pixels() -> int:
    """Pixels that a picture or a frame may have. Raises UserError where the environment names no such number."""
    text = os.environ.get(VARIABLE, "").strip() or str(MEGAPIXELS)
    try:
        millions = float(text)
    except ValueError:
        millions = math.nan
    if not 0 < millions <= 2000:  # beyond, libraries count bytes in 31 bits
        raise UserError(f"The environment variable {VARIABLE} is {text!r}: expected megapixels, above 0 to 2000.")
    return int(millions * 1e6)


def check_pixels(what: object, size: tuple[int, int], frames: int = 1) -> None:
    """Raises UserError, which begins with `what`, for a picture of (height, width) with more than `most_pixels`.

    Called before anything is decoded: a file of a few bytes can ask for gigabytes. `frames`: it is so many in one.
    """
    height, width = size
    if height * width > most_pixels() * frames:
        raise UserError(
            f"{what}: is {width} by {height} pixels, {height * width / 1e6:.6g} megapixels, and at most "
            f"{most_pixels() * frames / 1e6:g} are read, lest it fill the memory: scale it down, or raise the limit "
            f"with --max-megapixels or the environment variable {VARIABLE}."
        )


def check_head(what: object, head: bytes) -> None:
    """`check_pixels` by how a file begins, where that says how large its frames are: ffmpeg is silent or vague on
    some that it does not decode."""
    if head[:6] in (b"GIF87a", b"GIF89a") and len(head) >= 10:
        check_pixels(what, struct.unpack("<HH", head[6:10])[::-1])
    elif head.startswith(PNG) and len(head) >= 24:
        check_pixels(what, struct.unpack(">II", head[16:24])[::-1])
    elif found := re.match(rb"YUV4MPEG2 (?:\S+ )*?W(\d{1,9}) (?:\S+ )*?H(\d{1,9})\s", head):
        check_pixels(what, (int(found[2]), int(found[1])))


PNG = b"\x89PNG\r\n\x1a\n"

MOST_TEXT = 2**26
"""Bytes of all compressed texts and profiles of a PNG, unpacked: as many as Pillow takes. ffmpeg takes any number."""

_PACKED = {  # chunks of a PNG -> what is before their compressed part
    b"zTXt": rb"[^\0]*\0.",
    b"iCCP": rb"[^\0]*\0.",
    b"iTXt": rb"[^\0]*\0\1.[^\0]*\0[^\0]*\0",
}


def check_texts(what: object, file: IO[bytes]) -> None:
    """Raises UserError, which begins with `what`, for a PNG with texts of more than `MOST_TEXT`."""
    if file.read(8) != PNG:
        return
    left = MOST_TEXT
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind not in _PACKED:
            file.seek(length + 4, 1)
            continue
        data = file.read(length)
        file.seek(4, 1)
        if start := re.match(_PACKED[kind], data, re.DOTALL):
            with suppress(zlib.error):
                left -= len(zlib.decompressobj().decompress(data[start.end() :], left))
        if left <= 0:
            raise UserError(
                f"{what}: holds texts of more than {MOST_TEXT // 2**20} MB, lest they fill the memory it is not read: "
                "save it without them."
            )


def decoder_options() -> dict[str, str]:
    """What keeps ffmpeg's decoders to the limit, whatever a file says of itself. They count the edges that they add."""
    return {"max_pixels": str(min(most_pixels() * 9 // 8 + 2**17, 2**31 - 1))}


def allow(megapixels: float | None) -> None:
    """Raises or lowers what is decoded, also in the processes that are started, as `--max-megapixels` says."""
    if megapixels is not None:
        os.environ[VARIABLE] = f"{megapixels:g}"


def megapixels_option() -> Any:
    """The annotation of `--max-megapixels`, a command's parameter."""
    from ..terminal import option

    help = f"largest picture or frame that is decoded (default: {MEGAPIXELS:g}; also {VARIABLE})"
    return option(Annotated[float, Field(gt=0, le=2000), Spoken("megapixels, above 0 to 2000", "N")] | None, help)
