"""The sizes and rates that are taken; beyond them a slip of the finger, or a file's word, would fill the memory."""

from __future__ import annotations

import argparse
import math
import os
from fractions import Fraction
from typing import Any

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
            f"{what}: is {width} by {height} pixels, {height * width / 1e6:.0f} megapixels, and at most "
            f"{most_pixels() * frames / 1e6:g} are read, lest it fill the memory: scale it down, or raise the limit "
            f"with --max-megapixels or the environment variable {VARIABLE}."
        )


def decoder_options() -> dict[str, str]:
    """What keeps ffmpeg's decoders to the limit, whatever a file says of itself. They count the edges that they add."""
    return {"max_pixels": str(min(most_pixels() * 9 // 8 + 2**17, 2**31 - 1))}


class MaxMegapixels(argparse.Action):
    """The option of commands that read pictures; it holds for the processes that they start too."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        os.environ[VARIABLE] = values
        try:
            most_pixels()
        except UserError:
            parser.error(f"argument {option_string}: {values}: expected megapixels, above 0 to 2000")


def add_limits(parser: argparse.ArgumentParser) -> None:
    """Adds `--max-megapixels` to a command."""
    parser.add_argument(
        "--max-megapixels",
        action=MaxMegapixels,
        default=argparse.SUPPRESS,
        metavar="N",
        help=f"largest picture or frame that is decoded (default: {MEGAPIXELS:g}; also {VARIABLE})",
    )
