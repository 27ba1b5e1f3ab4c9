"""The processes of a run: how they find each other, and which of them trains on which domain."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from training.launch import LOST, follow_launcher
from training.recipe import Recipe
from vc_core.composer import choose_device
from vc_core.errors import UserError


@dataclass(frozen=True)
class World:
    """The processes of a run, and which of them this is: `local_size` of them are on this node.

    `shared`: whether they share the recipe's batches, see `dealt`; else each has as many of its own.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1
    device: torch.device = field(default_factory=partial(torch.device, "cpu"))
    shared: bool = False

    @property
    def main(self) -> bool:
        return self.rank == 0

    @property
    def first_here(self) -> bool:
        """Whether this is the first process of its node."""
        return self.rank % self.local_size == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of the ranks' tensors, on the CPU: a small message that does not wait for the device's work."""
        tensor = tensor.detach().cpu().clone()
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def most(self, number: int) -> int:
        """The largest of the ranks' numbers."""
        tensor = torch.tensor(number)
        if self.size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return int(tensor)

    def gathered(self, items: list[Any]) -> list[Any]:
        """The ranks' items, values that pickle holds, one rank's after the other."""
        if self.size == 1:
            return items
        of_ranks: list[Any] = [None] * self.size
        dist.all_gather_object(of_ranks, items)
        return [item for of_one in of_ranks for item in of_one]

    def wait(self) -> None:
        """For all ranks to come here."""
        self.sum(torch.zeros(()))


_KEPT: list[dist.ProcessGroup] = []
"""Groups that are left, until the process ends. The last one that lets go of a group of gloo's waits for its threads
while it holds Python's lock, and they wait for the lock to let go of the last message's tensors: at times for ever."""


@contextmanager
def joined(device: str = "auto") -> Iterator[World]:
    """This process among those that torchrun or `training.launch` started, or alone.

    Raises `UserError` for a device that is not there, and SystemExit where another rank that `training.launch` started
    has ended; that one says why.
    """
    chosen = choose_device(device)
    if "RANK" not in os.environ:
        yield World(device=chosen)
        return
    rank, size, local_size = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if chosen.type == "cuda":
        chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(chosen)
    # Small messages go by gloo, so that asking "has anyone been told to stop?" does not wait for the GPU. The time
    # allows for validation videos and for large checkpoints, during which the others wait.
    backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
    # Ranks that are watched, and end when one is lost, may wait for a full disk.
    launched = follow_launcher()
    dist.init_process_group(backend, timeout=timedelta(days=30) if launched else timedelta(hours=1))
    try:
        yield World(rank, size, local_size, chosen, launched)
    except RuntimeError as error:
        if launched and "gloo/transport" in str(error):
            raise SystemExit(LOST) from error
        raise
    _KEPT.append(dist.group.WORLD)
    dist.destroy_process_group()  # not after an exception: others may still be inside of a collective, and hang


@dataclass(frozen=True)
class Lane:
    """A domain that a rank trains on, as which one of how many ranks that share it."""

    domain: int
    rank: int
    ranks: int


def lanes_of(rank: int, size: int, shares: Sequence[int]) -> list[Lane]:
    """The lanes of a rank: one of several takes one, by the domains' shares; one alone takes all domains in turn."""
    if size == 1:
        return [Lane(domain, 0, 1) for domain in range(len(shares))]
    owners = owners_of(size, shares)
    return [Lane(owners[rank], owners[:rank].count(owners[rank]), owners.count(owners[rank]))]


def owners_of(size: int, shares: Sequence[int]) -> list[int]:
    """The domain of each of several ranks, by D'Hondt's method, which gives 3 and 1 of 4, and at least one to each.
    Raises `UserError` where there are more domains than ranks."""
    if size < len(shares):
        raise UserError(
            f"The recipe has {len(shares)} domains, and {size} ranks cannot share them: start one process, or at least "
            f"{len(shares)}."
        )
    counts = [1] * len(shares)
    while sum(counts) < size:
        counts[max(range(len(shares)), key=lambda domain: shares[domain] / (counts[domain] + 1))] += 1
    return [domain for domain, count in enumerate(counts) for _ in range(count)]


LARGE = 2**30
"""Bytes of a checkpoint whose network is not copied to several ranks unasked: it keeps the threads of one busy."""


def ranks_for(recipe: Recipe, cores: int) -> int:
    """How many ranks a recipe is trained with on one machine: `recipe.ranks`, or by itself the most, up to the cores,
    that its batches can be dealt to. Raises `UserError` where what `recipe.ranks` says cannot be done.

    By itself it is one process where ranks would learn something else, or be slower: on a GPU; where networks are
    large or sharded; where the domains would need ranks of their own; where dropout is drawn for a batch as a whole.
    """
    if choose_device(recipe.engine.device).type != "cpu":
        if recipe.ranks not in (None, 1):
            raise UserError(
                f"The recipe's ranks is {recipe.ranks}, which is for a CPU: start torchrun for several GPUs (see "
                "training/README.md), or give --engine.device cpu."
            )
        return 1
    if recipe.ranks is not None:
        dealt(recipe, recipe.ranks)
        return recipe.ranks
    start, file = recipe.start, recipe.start.checkpoint
    small = start.network is not None if start.kind == "scratch" else file.is_file() and file.stat().st_size < LARGE
    alike = len(recipe.data) == 1 and recipe.engine.parallel == "ddp" and recipe.loss.dropout == "independent"
    samples = recipe.data[0].batch * recipe.optimizer.accumulate
    return max(n for n in range(1, cores + 1) if samples % n == 0) if small and alike else 1


def dealt(recipe: Recipe, ranks: int) -> Recipe:
    """The recipe as each of some ranks takes it, whose steps together learn from the samples of one process.

    Its batches are smaller by the number of ranks, or fewer of them are accumulated. What the network's own dropout
    draws is another thing, as is the rounding of sums. Raises `UserError` where they cannot be dealt evenly.
    """
    if ranks == 1:
        return recipe
    accumulate = recipe.optimizer.accumulate
    owners = owners_of(ranks, [domain.ranks for domain in recipe.data])
    for fewer in range(1, accumulate + 1):
        parts = [divmod(d.batch * accumulate, owners.count(i) * fewer) for i, d in enumerate(recipe.data)]
        if all(not rest and batch <= d.batch for (batch, rest), d in zip(parts, recipe.data, strict=True)):
            data = tuple(replace(d, batch=batch) for (batch, _), d in zip(parts, recipe.data, strict=True))
            return replace(recipe, data=data, optimizer=replace(recipe.optimizer, accumulate=fewer))
    raise UserError(
        f"The recipe's batches cannot be shared evenly among {ranks} ranks: give a number of --ranks that divides "
        "batch x accumulate of each domain, or change these."
    )
