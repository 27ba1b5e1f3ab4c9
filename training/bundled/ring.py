"""Scenes for training, in the memory of the training device. New scenes replace the oldest, so none is used long."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from training.data.synthetic.clips import make_shard
from training.data.synthetic.scenes import scene_seeds
from training.timed import TimedRun

CHUNK, AT_ONCE = {"cpu": 8, "cuda": 1024}, {"cpu": 64, "cuda": 1024}
"""Minimum and maximum number of scenes that are rendered together, by device type. A GPU needs as long to start the
thousands of small kernels for eight scenes as for hundreds."""


class Ring:
    """The newest scenes of a seed, from `make_shard`, on the encoders' device.

    Args:
        autoencoder, towers: frozen; they compute latents and tokens.
        seed: of the scenes. This rank uses every `ranks`-th scene, starting with `rank`.
        capacity: number of scenes in memory.
        start: number of this rank's scenes that were rendered before.
        size: side of the frames in pixels.
        scale: of the conditions, see `vc_core.conditions.condition_size`.

    Attributes:
        drawn: number of this rank's scenes that were rendered.
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
            self._aside.wait_stream(torch.cuda.current_stream())  # until the weights are on the device
        self._scenes: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return min(self.drawn - self.start, self.capacity)

    @torch.no_grad()
    def draw(self, count: int) -> None:
        """Render `count` new scenes, at most `capacity`, which replace the oldest."""
        seeds = scene_seeds(self.seed, self.rank + self.ranks * self.drawn, count * self.ranks)[:: self.ranks]
        tensors = self._rendered(seeds)
        if not self._scenes:
            self._scenes = {name: t.new_empty(self.capacity, *t.shape[1:]) for name, t in tensors.items()}
        slots = (self.drawn - self.start + torch.arange(count)) % self.capacity
        slots = slots.to(tensors["latents"].device, non_blocking=True)
        for name, tensor in tensors.items():
            self._scenes[name][slots] = tensor
        self.drawn += count

    def _rendered(self, seeds: Tensor) -> dict[str, Tensor]:
        """Return the scenes' tensors. Rendering often waits for values from the device. In a separate stream, it can
        wait while the training stream still has steps to run."""
        with nullcontext() if self._aside is None else torch.cuda.stream(self._aside):
            batch = AT_ONCE[self._device]
            tensors = make_shard(seeds, self.autoencoder, self.towers, self.size, scale=self.scale, batch=batch)
        if self._aside is not None:
            torch.cuda.current_stream().wait_stream(self._aside)
            for tensor in tensors.values():
                tensor.record_stream(torch.cuda.current_stream())
        return tensors

    def keep_up(self, target: float) -> None:
        """Render scenes until `target` of them have been rendered, in chunks of at least `CHUNK`."""
        if (due := int(target) - self.drawn) >= min(CHUNK[self._device], self.capacity):
            self.draw(min(due, self.capacity))

    def take(self, name: str, clips: Tensor, frames: Tensor) -> Tensor:
        """Return one tensor at frames (B, F) of clips (B,)."""
        return self._scenes[name][clips[:, None], frames]


class Supply:
    """Renders a run's scenes: `beginning` before its first step after every start, then `due` per step."""

    def __init__(self, ring: Ring, run: TimedRun, beginning: int, due: float):
        self.ring, self.run, self.beginning, self.due = ring, run, beginning, due
        self._before = ring.drawn + beginning - run.step * due

    def keep_up(self) -> None:
        """Render the scenes that are due in the run's current step."""
        if not len(self.ring):
            self.ring.draw(self.beginning)
        self.ring.keep_up(self._before + self.run.step * self.due)
        self.run.more["drawn"] = self.ring.drawn


def windows(
    length: int, frames: int, batch: int, device: torch.device | str = "cpu", generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Return random frame numbers (B, frames) in clips of `length` frames, and strides (B,), see `draw_window`."""
    most = max((length - 1) // max(frames - 1, 1), 1) if frames > 1 else 1
    stride = 1 + (torch.rand(batch, device=device, generator=generator) * most).long()
    room = length - (frames - 1) * stride
    start = (torch.rand(batch, device=device, generator=generator) * room).long()
    return start[:, None] + stride[:, None] * torch.arange(frames, device=device), stride


def padded(rows: Tensor, room: int | None) -> tuple[Tensor, Tensor]:
    """Pad or cut indices (n,) to (room,). Also returns their weights (room,): 1, or 0 for padding.

    Args:
        room: None keeps all n indices.
    """
    room = len(rows) if room is None else room
    rows = rows[:room]
    counts = torch.arange(room) < len(rows)
    return torch.cat([rows, rows.new_zeros(room - len(rows))]), counts.float()
