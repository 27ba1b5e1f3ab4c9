"""The order of samples: a function of the recipe's seed and the number of samples used, and of nothing else.

Each domain has its own order, in which its samples are counted: 0, 1, 2 and so on, epoch after epoch. A step uses the
next samples, enough for the batches of all ranks of the domain, and distributes them: of R ranks, rank r reads the
samples with count % R == r. So the number of ranks may change when a run is resumed: while ranks x batch x accumulate
stays the same, every step uses the same samples. The position of a run is the count of each domain.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from vc_core.errors import UserError


def draw(*values: int | str) -> int:
    """64 random bits that depend only on the values, and are the same on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(values).encode(), digest_size=8).digest(), "little")


def generator_for(*values: int | str) -> torch.Generator:
    """A generator whose state depends only on the values, for example `(seed, number, "noise")`."""
    return torch.Generator().manual_seed(draw(*values))


def draw_below(high: int, generator: torch.Generator) -> int:
    """A random integer from 0 to `high` - 1."""
    return int(torch.randint(high, (), generator=generator))


def permuted(place: int, length: int, *key: int | str) -> int:
    """The image of a place under the permutation of `length` places that the key selects. Nothing is stored.

    A Feistel network permutes the next power of four. A result beyond the length goes in again ("cycle walking", Black
    and Rogaway 2002), fewer than four times on average.
    """
    half = max(1, ((length - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = place >> half, place & mask
        for number in range(8):  # four rounds would already be as good as random (Luby and Rackoff 1988)
            left, right = right, left ^ (draw(*key, number, right) & mask)
        place = left << half | right
        if place < length:
            return place


@dataclass(frozen=True)
class Order:
    """The order of one domain's samples. Raises `UserError` if the domain is empty."""

    seed: int  # the recipe's
    length: int  # clips of the domain
    domain: int = 0  # index of the domain
    domains: int = 1  # number of domains in the recipe

    def __post_init__(self) -> None:
        if self.length < 1:
            raise UserError(
                f"The recipe's data {self.domain} is empty. Expected at least 1 clip or image. Check its path."
            )

    def number(self, count: int) -> int:
        """The number of the domain's sample `count` among all samples of the run. Its random numbers depend on it."""
        return count * self.domains + self.domain

    def index(self, count: int, attempt: int = 0) -> int:
        """The clip of sample `count`. Each epoch is a new permutation of all clips.

        Args:
            attempt: 1 and more for the clips to try, one after the other, if the previous ones cannot be read.
        """
        if attempt:
            return draw(self.seed, self.domain, "instead", count, attempt) % self.length
        epoch, place = divmod(count, self.length)
        return permuted(place, self.length, self.seed, self.domain, epoch)


@dataclass(frozen=True)
class Slot:
    """One batch of one rank."""

    counts: tuple[int, ...]  # the samples' counts in the domain's order
    frames: int  # of each sample
    after: int  # the domain's count after this step


@dataclass(frozen=True)
class RankOrder:
    """The part of a domain's order that one rank reads.

    Attributes:
        frames: numbers of frames; each step draws one of them, the same on all ranks. A number that is listed twice is
            drawn twice as often.
        batch: samples per rank and batch, for the longest clips. Clips half as long come in batches twice as large.
    """

    order: Order
    frames: tuple[int, ...] = (16,)
    batch: int = 1
    rank: int = 0  # of this process
    ranks: int = 1  # number of ranks that share the domain
    accumulate: int = 1  # batches per rank and step

    def step(self, count: int) -> list[Slot]:
        """This rank's batches of the step that starts at a count of the domain's order."""
        frames = self.frames[draw(self.order.seed, self.order.domain, "frames", count) % len(self.frames)]
        batch = self.batch * (max(self.frames) // frames)
        after = count + batch * self.ranks * self.accumulate
        mine = range(count + self.rank, after, self.ranks)
        return [Slot(tuple(mine[first : first + batch]), frames, after) for first in range(0, len(mine), batch)]

    def slots(self, count: int = 0) -> Iterator[Slot]:
        """Yield this rank's batches from a count on, forever."""
        while True:
            yield from (slots := self.step(count))
            count = slots[-1].after
