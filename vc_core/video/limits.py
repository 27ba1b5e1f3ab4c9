"""The sizes and rates that are taken; beyond them a slip of the finger would fill the memory."""

from __future__ import annotations

from fractions import Fraction

from ..errors import UserError

SLOWEST, FASTEST = Fraction(1, 100), 1000
"""Frames a second: what the clocks of files hold, and what cameras record."""

LARGEST = 16384
"""Pixels of a side: what H.264 can store."""


def check_rate(what: str, rate: float | Fraction) -> None:
    """Raises UserError, which begins with `what`, for frames a second that are no number from 0.01 to 1000."""
    if not SLOWEST <= rate <= FASTEST:
        raise UserError(f"{what} is {float(rate):g} frames a second: give a number from {float(SLOWEST)} to {FASTEST}.")


def check_size(what: str, size: tuple[int, int]) -> None:
    """Raises UserError, which begins with `what`, where a side of (height, width) is not 1 to 16384 pixels."""
    if not all(1 <= side <= LARGEST for side in size):
        raise UserError(f"{what} is {size[1]} by {size[0]} pixels: expected sides of 1 to {LARGEST}.")
