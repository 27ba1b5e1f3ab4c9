"""The processes of a run: how they connect to each other, and which of them trains on which domain."""

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
    """The processes of a run, and the rank of this one. `local_size` of them are on this node.

    `shared`: whether they divide the recipe's batches, see `dealt`; otherwise each rank has full batches.
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
        """The sum of the ranks' tensors, on the CPU: a small message that does not wait for the device."""
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
        """The items of all ranks, in the order of the ranks. Items must be picklable."""
        if self.size == 1:
            return items
        of_ranks: list[Any] = [None] * self.size
        dist.all_gather_object(of_ranks, items)
        return [item for rank_items in of_ranks for item in rank_items]

    def wait(self) -> None:
        """Wait until all ranks have called this."""
        self.sum(torch.zeros(()))


_KEPT: list[dist.ProcessGroup] = []
"""Finished groups, until the process ends. Deleting a group of gloo waits for its threads while holding Python's lock,
and the threads wait for the lock to free the last message's tensors: sometimes a deadlock."""


@contextmanager
def joined(device: str = "auto") -> Iterator[World]:
    """Join the processes that torchrun or `training.launch` started; without them, run alone.

    Raises `UserError` if the device is not available, and SystemExit if another rank that `training.launch` started
    has ended. That rank reports why.
    """
    chosen = choose_device(device)
    if "RANK" not in os.environ:
        yield World(device=chosen)
        return
    rank, size, local_size = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if chosen.type == "cuda":
        chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(chosen)
    # Small messages use gloo, so that the question whether a rank received a signal does not wait for the GPU. The
    # timeout leaves time for validation videos and large checkpoints, during which the other ranks wait.
    backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
    # Ranks of `launch` end when one is lost, so they may wait long, for example for a full disk.
    launched = follow_launcher()
    dist.init_process_group(backend, timeout=timedelta(days=30) if launched else timedelta(hours=1))
    try:
        yield World(rank, size, local_size, chosen, launched)
    except RuntimeError as error:
        if launched and "gloo/transport" in str(error):
            raise SystemExit(LOST) from error
        raise
    _KEPT.append(dist.group.WORLD)
    dist.destroy_process_group()  # not after an exception: other ranks may still be inside a collective and hang


@dataclass(frozen=True)
class Lane:
    """A domain that a rank trains on."""

    domain: int
    rank: int  # among the ranks of the domain
    ranks: int  # number of ranks of the domain


def lanes_of(rank: int, size: int, ratios: Sequence[int]) -> list[Lane]:
    """The lanes of a rank: one lane, according to the ratios, or all domains if it is the only rank."""
    if size == 1:
        return [Lane(domain, 0, 1) for domain in range(len(ratios))]
    owners = owners_of(size, ratios)
    return [Lane(owners[rank], owners[:rank].count(owners[rank]), owners.count(owners[rank]))]


def owners_of(size: int, ratios: Sequence[int]) -> list[int]:
    """The domain of each rank, by D'Hondt's method: ratios of 3 and 1 give 3 and 1 of 4 ranks, and each domain has at
    least one rank. Raises `UserError` if there are more domains than ranks."""
    if size < len(ratios):
        raise UserError(
            f"The recipe has {len(ratios)} domains, but there are only {size} ranks. Start one process, or at least "
            f"{len(ratios)}."
        )
    counts = [1] * len(ratios)
    while sum(counts) < size:
        counts[max(range(len(ratios)), key=lambda domain: ratios[domain] / (counts[domain] + 1))] += 1
    return [domain for domain, count in enumerate(counts) for _ in range(count)]


LARGE = 2**30
"""Bytes of a checkpoint file. From this size on, its network is not copied to several ranks by default: one rank keeps
all threads busy."""


def ranks_for(recipe: Recipe, cores: int) -> int:
    """The number of ranks for a recipe on one machine: `recipe.ranks`, or by default the largest number, up to the
    cores, that divides its batches. Raises `UserError` if `recipe.ranks` is not possible.

    By default it is 1 if several ranks would learn something else, or be slower: on a GPU; if networks are large or
    sharded; if each domain would require its own ranks; if dropout is drawn once for an entire batch.
    """
    if choose_device(recipe.engine.device).type != "cpu":
        if recipe.ranks not in (None, 1):
            raise UserError(
                f"The recipe's ranks is {recipe.ranks}, but several ranks require a CPU. Start torchrun for "
                "several GPUs (see training/README.md), or set --engine.device cpu."
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
    """The recipe for each of several ranks, so that a step of all ranks uses the same samples as one process.

    Batches are divided by the number of ranks, or fewer of them are accumulated. The network's own dropout and the
    rounding of sums differ. Raises `UserError` if the batches cannot be divided evenly.
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
        f"The recipe's batches cannot be divided evenly among {ranks} ranks. Set --ranks to a divisor of batch x "
        "accumulate of each domain, or change these."
    )
