"""The order of samples: a function of the recipe's seed and of how many were taken, and of nothing else.

Each domain has an order of its own, in which its samples are counted: 0, 1, 2 and so on, epoch after epoch. A step
takes the next ones, as many as all of the domain's ranks have in their batches, and deals them out: of R ranks, rank
r takes those whose count leaves the rest r. So the number of ranks may change from one start of a run to the next: as
long as ranks x batch x accumulate stays, every step takes the same samples. Where a run stands is each domain's count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from vc_core.errors import UserError


def draw(*values: int | str) -> int:
    """64 random bits that are a function of the values alone, on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(values).encode(), digest_size=8).digest(), "little")


def generator_for(*values: int | str) -> torch.Generator:
    """A generator whose state is a function of the values alone, for instance `(seed, number, "noise")`."""
    return torch.Generator().manual_seed(draw(*values))


def draw_below(high: int, generator: torch.Generator) -> int:
    """A whole number from 0 on and below `high`."""
    return int(torch.randint(high, (), generator=generator))


def permuted(place: int, length: int, *key: int | str) -> int:
    """Where a permutation of `length` places, which the key chooses, puts one of them. Nothing of it is stored.

    A Feistel network permutes the next power of four; what comes out beyond the length goes in again ("cycle
    walking", Black and Rogaway 2002), fewer than four times on average.
    """
    half = max(1, ((length - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = place >> half, place & mask
        for number in range(8):  # four rounds are enough for cryptographers
            left, right = right, left ^ (draw(*key, number, right) & mask)
        place = left << half | right
        if place < length:
            return place


@dataclass(frozen=True)
class Order:
    """The order of one domain's samples. Raises `UserError` where the domain is empty."""

    seed: int  # the recipe's
    length: int  # clips of the domain
    domain: int = 0  # which one
    domains: int = 1  # of how many in the recipe

    def __post_init__(self) -> None:
        if self.length < 1:
            raise UserError(f"The recipe's data {self.domain} is empty: expected at least 1 clip or image.")

    def number(self, count: int) -> int:
        """Of the domain's sample `count`, among all of the run: what its random numbers are a function of."""
        return count * self.domains + self.domain

    def index(self, count: int, attempt: int = 0) -> int:
        """Which clip is sample `count`. Each epoch is a new permutation of all.

        Args:
            attempt: 1 and more for the clips that are tried, one after the other, where those before cannot be read.
        """
        if attempt:
            return draw(self.seed, self.domain, "instead", count, attempt) % self.length
        epoch, place = divmod(count, self.length)
        return permuted(place, self.length, self.seed, self.domain, epoch)


@dataclass(frozen=True)
class Slot:
    """One batch of one rank."""

    counts: tuple[int, ...]  # of its samples in the domain's order
    frames: int  # of each
    after: int  # the domain's count when its step is done


@dataclass(frozen=True)
class Share:
    """What one rank takes of a domain's order.

    Attributes:
        frames: numbers of frames; each step draws one of them, the same on all ranks. Listed twice, it is drawn twice
            as often.
        batch: samples for each rank and batch, of the longest; of shorter ones as many times more as they are shorter.
    """

    order: Order
    frames: tuple[int, ...] = (16,)
    batch: int = 1
    rank: int = 0  # which one
    ranks: int = 1  # of how many that share the domain
    accumulate: int = 1  # batches of each rank for one step

    def step(self, count: int) -> list[Slot]:
        """This rank's batches of the step that begins at a count of the domain's order."""
        frames = self.frames[draw(self.order.seed, self.order.domain, "frames", count) % len(self.frames)]
        batch = self.batch * (max(self.frames) // frames)
        after = count + batch * self.ranks * self.accumulate
        mine = range(count + self.rank, after, self.ranks)
        return [Slot(tuple(mine[first : first + batch]), frames, after) for first in range(0, len(mine), batch)]

    def slots(self, count: int = 0) -> Iterator[Slot]:
        """This rank's batches from a count on, without end."""
        while True:
            yield from (slots := self.step(count))
            count = slots[-1].after
