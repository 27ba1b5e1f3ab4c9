"""Scenes for training, kept on the device that trains: the oldest give way to new ones, so none is seen for long."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from training.data.synthetic.clips import make_shard
from training.data.synthetic.scenes import scene_seeds

CHUNK, AT_ONCE = {"cpu": 8, "cuda": 1024}, {"cpu": 64, "cuda": 1024}
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

    def __init__(
        self,
        autoencoder: Any,
        towers: Any,
        seed: int,
        capacity: int,
        *,
        start: int = 0,
        rank: int = 0,
        ranks: int = 1,
        size: int = 64,
        scale: int | None = None,
    ):
        self.autoencoder, self.towers, self.seed, self.capacity = autoencoder, towers, seed, capacity
        self.rank, self.ranks, self.size, self.scale = rank, ranks, size, scale
        self.start = self.drawn = start
        self._device = next(autoencoder.parameters()).device.type
        self._aside = torch.cuda.Stream() if self._device == "cuda" else None
        if self._aside is not None:
            self._aside.wait_stream(torch.cuda.current_stream())  # for the weights to be there
        self._kept: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return min(self.drawn - self.start, self.capacity)

    @torch.no_grad()
    def draw(self, count: int) -> None:
        """Takes in `count` new scenes, at most as many as are kept."""
        seeds = scene_seeds(self.seed, self.rank + self.ranks * self.drawn, count * self.ranks)[:: self.ranks]
        made = self._made(seeds)
        if not self._kept:
            self._kept = {name: t.new_empty(self.capacity, *t.shape[1:]) for name, t in made.items()}
        slots = (self.drawn - self.start + torch.arange(count)) % self.capacity
        slots = slots.to(made["latents"].device, non_blocking=True)
        for name, tensor in made.items():
            self._kept[name][slots] = tensor
        self.drawn += count

    def _made(self, seeds: Tensor) -> dict[str, Tensor]:
        """The scenes' tensors. Making them asks the device much; beside the stream of training it can wait for the
        answers while that has steps left to do."""
        with nullcontext() if self._aside is None else torch.cuda.stream(self._aside):
            batch = AT_ONCE[self._device]
            made = make_shard(seeds, self.autoencoder, self.towers, self.size, scale=self.scale, batch=batch)
        if self._aside is not None:
            torch.cuda.current_stream().wait_stream(self._aside)
            for tensor in made.values():
                tensor.record_stream(torch.cuda.current_stream())
        return made

    def keep_up(self, wanted: float) -> None:
        """Draws as many scenes as are due where `wanted` should have been drawn, a chunk at a time."""
        if (due := int(wanted) - self.drawn) >= min(CHUNK[self._device], self.capacity):
            self.draw(min(due, self.capacity))

    def take(self, name: str, clips: Tensor, frames: Tensor) -> Tensor:
        """One tensor of the frames (B, F) of some clips (B,)."""
        return self._kept[name][clips[:, None], frames]


def windows(
    length: int, frames: int, batch: int, device: torch.device | str = "cpu", generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Which frames (B, frames) of clips of `length` frames are taken, and every which (B,): see `draw_window`."""
    most = max((length - 1) // max(frames - 1, 1), 1) if frames > 1 else 1
    stride = 1 + (torch.rand(batch, device=device, generator=generator) * most).long()
    room = length - (frames - 1) * stride
    start = (torch.rand(batch, device=device, generator=generator) * room).long()
    return start[:, None] + stride[:, None] * torch.arange(frames, device=device), stride


def padded(rows: Tensor, room: int | None) -> tuple[Tensor, Tensor]:
    """Indices (n,) made as many as there is room for, and what each counts, (room,): 1, or 0 where there was none left.

    Args:
        room: None for as many as there are.
    """
    room = len(rows) if room is None else room
    rows = rows[:room]
    counts = torch.arange(room) < len(rows)
    return torch.cat([rows, rows.new_zeros(room - len(rows))]), counts.float()
