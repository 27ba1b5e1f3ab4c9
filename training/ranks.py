"""The processes of a run: how they find each other, and which of them trains on which domain."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vc_core.composer import choose_device
from vc_core.errors import UserError


@dataclass(frozen=True)
class World:
    """The processes of a run, and which of them this is.

    Attributes:
        rank, size: this process and how many there are.
        local_size: how many there are on this node.
        device: what this one computes on.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1
    device: torch.device = field(default_factory=partial(torch.device, "cpu"))

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
    """This process among those that torchrun started, or alone.

    Raises:
        UserError: a device that is not there.
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
    dist.init_process_group(backend, timeout=timedelta(hours=1))
    yield World(rank, size, local_size, chosen)
    _KEPT.append(dist.group.WORLD)
    dist.destroy_process_group()  # not after an exception: others may still be inside of a collective, and hang


@dataclass(frozen=True)
class Lane:
    """A domain that a rank trains on, as which one of how many ranks that share it."""

    domain: int
    rank: int
    ranks: int


def lanes_of(rank: int, size: int, shares: Sequence[int]) -> list[Lane]:
    """The lanes of a rank: one of several takes one, by the domains' shares; one alone takes all domains in turn.

    The ranks are handed out by D'Hondt's method, which gives 3 and 1 of 4, 6 and 2 of 8, and at least one to each.

    Raises:
        UserError: several ranks, and more domains than ranks.
    """
    if size == 1:
        return [Lane(domain, 0, 1) for domain in range(len(shares))]
    if size < len(shares):
        raise UserError(f"The recipe has {len(shares)} domains, and {size} ranks cannot share them: start one process, "
                        f"or at least {len(shares)}.")  # fmt: skip
    counts = [1] * len(shares)
    while sum(counts) < size:
        counts[max(range(len(shares)), key=lambda domain: shares[domain] / (counts[domain] + 1))] += 1
    owners = [domain for domain, count in enumerate(counts) for _ in range(count)]
    domain = owners[rank]
    return [Lane(domain, owners[:rank].count(domain), counts[domain])]
