"""Batches out of the cache of synthetic clips: windows, condition tensors, and what real extractors would spoil."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.cache import CAPTIONS, STILLS, ClipCache
from training.objective import draw_kept
from vc_core.conditions import CONDITIONS
from vc_core.extract import Rectangle, drawn_mask, half, masked_video


@dataclass(frozen=True)
class Batch:
    """One training batch. `conditions` holds only the samples that keep each (see `kept`), in their order."""

    latents: Tensor  # (B, 4, F, h, w)
    text: Tensor  # (B, 77, D)
    style: Tensor  # (B, 1, D)
    conditions: dict[str, Tensor]
    kept: dict[str, Tensor]  # (B,) bool by name


@dataclass(frozen=True)
class Window:
    """Which frames of a cached clip: `frames` of them from `start`, every `stride`-th."""

    start: int
    frames: int
    stride: int

    def of(self, cache: ClipCache, name: str, clip: int) -> Tensor:
        """A tensor of the clip in this window, frames first."""
        last = self.start + (self.frames - 1) * self.stride
        return cache.read(name, clip, slice(self.start, last + 1))[:: self.stride]


def draw_batch(
    cache: ClipCache, batch: int, frames: int, generator: torch.Generator, lone_motion: float = 0.0
) -> Batch:
    """A batch that is a function of the generator's state alone.

    Short windows take every frame or every few, up to the whole clip's length: what moves far in few frames teaches
    motion at a fraction of the cost.
    """

    def draw(high: int) -> int:
        return int(torch.randint(high, (), generator=generator))

    kept = draw_kept(batch, generator, lone_motion)
    latents, text, style = [], [], []
    conditions: dict[str, list[Tensor]] = {name: [] for name in CONDITIONS}
    for i in range(batch):
        clip = draw(len(cache))
        length = cache.read("latents", clip, slice(0, None)).shape[0]
        stride = 1 + draw(max((length - 1) // max(frames - 1, 1), 1)) if frames > 1 else 1
        start = draw(length - (frames - 1) * stride)
        window = Window(start, frames, stride)
        latents.append(window.of(cache, "latents", clip).float())
        text.append(cache.read("text", clip, slice(draw(CAPTIONS), None))[0].float())
        style.append(cache.read("style", clip, slice(draw(STILLS), None))[:1].float())
        for name in CONDITIONS:
            if kept[name][i]:
                own = window if CONDITIONS[name].kind == "temporal" else Window(start, 1, 1)
                conditions[name].append(_condition(name, cache, clip, own, generator))
    stacked = {name: torch.stack(list_).transpose(1, 2) for name, list_ in conditions.items() if list_}
    return Batch(torch.stack(latents).transpose(1, 2), torch.stack(text), torch.stack(style), stacked, kept)


def _condition(name: str, cache: ClipCache, clip: int, window: Window, generator: torch.Generator) -> Tensor:
    """One condition of one clip, `(F, C, H, W)`, frames first."""
    if name == "motion":
        # Steps of a few frames add up; for the few curved paths the last of them stands for all.
        return spoil_motion(window.of(cache, "motion", clip).float() * window.stride, generator)
    if name == "depth":
        return window.of(cache, "depth", clip).float()
    if name in ("sketch", "single_sketch"):  # outlines as people draw them, edges as the extractor finds them
        drawn = float(torch.rand((), generator=generator)) < 0.4
        return window.of(cache, "outline" if drawn else "edges", clip).float() / 255
    video = window.of(cache, "video", clip).float() / 255
    if name == "single_image":
        return video
    keep = draw_mask(window.of(cache, "object", clip).float() / 255, generator)
    return masked_video(video.transpose(0, 1)[None], keep.transpose(0, 1)[None])[0].transpose(0, 1)


def draw_mask(object_mask: Tensor, generator: torch.Generator) -> Tensor:
    """What to keep, `(F, 1, S, S)` of {0, 1}: all but the object (a moving mask), a rectangle, or half of the frame."""
    frames, _, size, _ = object_mask.shape
    kind, a, b, c, d = torch.rand(5, generator=generator).tolist()
    if kind < 0.5:
        grow = 2 * int(1 + a * size / 16) + 1
        return 1 - (F.max_pool2d(object_mask, grow, stride=1, padding=grow // 2) > 0.5).float()
    if kind < 0.8:
        height, width = int(size * (0.25 + 0.5 * a)), int(size * (0.25 + 0.5 * b))
        top, left = int(c * (size - height)), int(d * (size - width))
        shape = Rectangle(left, top, left + width, top + height)
    else:
        sides = ("top", "bottom") if b < 0.5 else ("left", "right")
        shape = half(sides[a >= 0.5], (size, size))
    return drawn_mask([shape], frames, (size, size))[0].transpose(0, 1)


def spoil_motion(motion: Tensor, generator: torch.Generator) -> Tensor:
    """Exact motion `(F, 2, S, S)` as a codec would have it: blocks, a little noise, spurious and missing vectors.

    The first frame's is zero, as in every motion field.
    """
    frames, _, size, _ = motion.shape
    block = (1, 2, 4, 4)[int(torch.randint(4, (), generator=generator))]
    wrong, missing, jitter = (torch.rand(3, generator=generator) * torch.tensor([0.02, 0.05, 0.15])).tolist()
    grid = motion[..., block // 2 :: block, block // 2 :: block]
    cells = grid.shape[-1]
    lots = torch.rand(frames, 1, cells, cells, generator=generator)
    noise = torch.randn(grid.shape, generator=generator)
    grid = grid + jitter * noise * (grid != 0)
    if torch.rand((), generator=generator) < 0.5:
        grid = torch.where(lots < wrong, 1.5 * noise, grid)
        grid = torch.where(lots > 1 - missing, torch.zeros_like(grid), grid)
    spoiled = F.interpolate(grid, (size, size), mode="nearest")
    return torch.cat([torch.zeros_like(spoiled[:1]), spoiled[1:]])
