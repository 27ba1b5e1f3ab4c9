"""Scenes for training, kept on the device that trains: the oldest give way to new ones, so none is seen for long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from training.data.cache import make_shard
from training.data.scenes import scene_seeds

CHUNK, AT_ONCE = {"cpu": 8, "cuda": 512}, {"cpu": 64, "cuda": 512}
"""Scenes that are drawn together, at least and at most, by the type of the device: starting the thousands of small
kernels that draw them takes a GPU as long for eight as for hundreds."""


class Ring:
    """The scenes of a seed that were drawn last, as `make_shard` makes them, on the encoders' device.

    Args:
        autoencoder, towers: make latents and tokens, frozen.
        seed: of the scenes. This rank takes every `ranks`-th of them, from `rank` on.
        capacity: number of scenes that are kept.
        start: number of this rank's scenes that were drawn before.
        size: pixels of a side.
        scale: of the conditions, see `vc_core.conditions.condition_size`.

    Attributes:
        drawn: number of this rank's scenes that were drawn.
    """

    def __init__(self, autoencoder: Any, towers: Any, seed: int, capacity: int, *, start: int = 0, rank: int = 0,
                 ranks: int = 1, size: int = 64, scale: int | None = None):  # fmt: skip
        self.autoencoder, self.towers, self.seed, self.capacity = autoencoder, towers, seed, capacity
        self.rank, self.ranks, self.size, self.scale = rank, ranks, size, scale
        self.drawn, self.there, self._next = start, 0, 0
        self._device = next(autoencoder.parameters()).device.type
        self._kept: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return self.there

    @torch.no_grad()
    def draw(self, count: int) -> None:
        """Takes in `count` new scenes, at most as many as are kept."""
        first = self.rank + self.ranks * self.drawn
        seeds = scene_seeds(self.seed, first, count * self.ranks)[:: self.ranks]
        made = make_shard(seeds, self.autoencoder, self.towers, self.size, scale=self.scale,
                          batch=AT_ONCE[self._device])  # fmt: skip
        if not self._kept:
            self._kept = {name: t.new_empty(self.capacity, *t.shape[1:]) for name, t in made.items()}
        slots = (torch.arange(self._next, self._next + count) % self.capacity).to(made["latents"].device)
        for name, tensor in made.items():
            self._kept[name][slots] = tensor
        self.drawn, self._next = self.drawn + count, (self._next + count) % self.capacity
        self.there = min(self.there + count, self.capacity)

    def keep_up(self, wanted: float) -> None:
        """Draws as many scenes as are due where `wanted` should have been drawn, a chunk at a time."""
        if (due := int(wanted) - self.drawn) >= min(CHUNK[self._device], self.capacity):
            self.draw(min(due, self.capacity))

    def take(self, name: str, clips: Tensor, frames: Tensor | None = None) -> Tensor:
        """One tensor of some clips (B,); of the frames (B, F) of each, or all that there is."""
        kept = self._kept[name]
        return kept[clips] if frames is None else kept[clips[:, None], frames]


def windows(length: int, frames: int, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which frames (B, frames) of clips of `length` frames are taken, and every which (B,): see `draw_window`."""
    device = generator.device
    most = max((length - 1) // max(frames - 1, 1), 1) if frames > 1 else 1
    stride = 1 + (torch.rand(batch, device=device, generator=generator) * most).long()
    room = length - (frames - 1) * stride
    start = (torch.rand(batch, device=device, generator=generator) * room).long()
    return start[:, None] + stride[:, None] * torch.arange(frames, device=device), stride


def rows_of(kept: Mapping[str, Tensor], names: Sequence[str], device: torch.device) -> dict[str, Tensor]:
    """Which samples keep each of the conditions, as indices on the device; nothing waits for it."""
    rows = {name: kept[name].nonzero(as_tuple=True)[0] for name in names}
    return {name: row.to(device, non_blocking=True) for name, row in rows.items() if len(row)}
