"""Batches out of the cache of synthetic clips, for `training.network`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.data.cache import CAPTIONS, STILLS, ClipCache
from training.data.synthetic import Window, condition_of, draw_mask, draw_window, spoil_motion
from training.objective import draw_kept
from vc_core.conditions import CONDITIONS

__all__ = ["Batch", "draw_batch", "draw_mask", "spoil_motion"]


@dataclass(frozen=True)
class Batch:
    """One training batch. `conditions` holds only the samples that keep each (see `kept`), in their order."""

    latents: Tensor  # (B, 4, F, h, w)
    text: Tensor  # (B, 77, D)
    style: Tensor  # (B, 1, D)
    conditions: dict[str, Tensor]
    kept: dict[str, Tensor]  # (B,) bool by name


def draw_batch(
    cache: ClipCache, batch: int, frames: int, generator: torch.Generator, lone_motion: float = 0.0
) -> Batch:
    """A batch that is a function of the generator's state alone."""

    def draw(high: int) -> int:
        return int(torch.randint(high, (), generator=generator))

    kept = draw_kept(batch, generator, lone_motion)
    latents, text, style = [], [], []
    conditions: dict[str, list[Tensor]] = {name: [] for name in CONDITIONS}
    for i in range(batch):
        clip = draw(len(cache))
        length = cache.read("latents", clip, slice(0, None)).shape[0]
        window = draw_window(length, frames, generator)
        latents.append(window.of(cache, "latents", clip).float())
        text.append(cache.read("text", clip, slice(draw(CAPTIONS), None))[0].float())
        style.append(cache.read("style", clip, slice(draw(STILLS), None))[:1].float())
        for name in CONDITIONS:
            if kept[name][i]:
                own = window if CONDITIONS[name].kind == "temporal" else Window(window.start, 1, 1)
                conditions[name].append(condition_of(name, cache, clip, own, generator))
    stacked = {name: torch.stack(list_).transpose(1, 2) for name, list_ in conditions.items() if list_}
    return Batch(torch.stack(latents).transpose(1, 2), torch.stack(text), torch.stack(style), stacked, kept)
