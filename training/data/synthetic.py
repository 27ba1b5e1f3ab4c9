"""The synthetic data set: scenes, their pixels and ground truth, their captions; and the clips that training takes of
them, spoiled as real extractors would."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.making import draw_below, style_image
from training.data.sample import Sample
from vc_core.conditions import CONDITIONS
from vc_core.extract.sketch import edges
from vc_core.video import resize_crop

from .cache import CAPTIONS, STILLS, ClipCache, as_bytes
from .captions import captions
from .render import EVERYTHING, Rendered, render
from .scenes import Scenes, sample_scenes, scene_seeds

__all__ = [
    "EVERYTHING",
    "DrawnScenes",
    "Rendered",
    "Scenes",
    "SyntheticClips",
    "Window",
    "captions",
    "condition_of",
    "draw_mask",
    "draw_window",
    "render",
    "sample_scenes",
    "scene_seeds",
    "spoil_motion",
]

CLIP = 16
"""Frames of a scene."""
DRAWN = 0.4
"""Share of the sketches that are outlines as people draw them; the others are the extractor's edges."""
MOVING, RECTANGLE = 0.5, 0.8
"""Of masks: below the first a moving one, below the second a rectangle, else half of the frame."""
BLOCKS = (1, 2, 4)
"""Sides of a codec's blocks, in pixels of the condition."""
JITTER, WRONG, MISSING = 0.15, 0.02, 0.3
"""At most: the noise on vectors in pixels, the shares of spurious ones and of those that are not there."""


class Tensors(Protocol):
    """What `ClipCache` is: named tensors of clips, frames first."""

    def __len__(self) -> int: ...

    def read(self, name: str, index: int, frames: slice | Sequence[int] = slice(None)) -> Tensor: ...


@dataclass(frozen=True)
class DrawnScenes:
    """The scenes of a seed, drawn when they are read: any number of them, without a cache.

    Tensors have the names, shapes and types of `training.data.cache.make_shard`, but for what needs an autoencoder or
    towers: there is `small`, the video at the size of training, instead of the latents.
    """

    seed: int
    count: int
    size: int = 64

    def __len__(self) -> int:
        return self.count

    def scene(self, index: int) -> Scenes:
        return _scene(self.seed, index)

    def read(self, name: str, index: int, frames: slice | Sequence[int] = slice(None)) -> Tensor:
        """One tensor of one scene; only what is asked for is rendered."""
        first, last, _ = frames.indices(CLIP) if isinstance(frames, slice) else (0, CLIP, 1)
        what = {"small": "video", "edges": "video", "object": "object_mask"}.get(name, name)
        scale = 8 if name == "small" else CONDITIONS["motion" if name == "motion" else "depth"].scale
        rendered = render(self.scene(index), scale * self.size // 8, last - first, first, (what,))
        tensor = getattr(rendered, what)
        if name == "edges":
            tensor = edges(tensor)
        if name not in ("motion", "depth"):
            tensor = as_bytes(tensor)
        tensor = tensor[0].transpose(0, 1)
        return tensor if isinstance(frames, slice) else tensor[list(frames)]


@lru_cache(maxsize=4)  # for the several tensors of one sample
def _scene(seed: int, index: int) -> Scenes:
    return sample_scenes(scene_seeds(seed, index, 1))


# --- Windows and what real extractors would spoil -------------------------------------------------------------------


@dataclass(frozen=True)
class Window:
    """Which frames of a clip: `frames` of them from `start`, every `stride`-th."""

    start: int
    frames: int
    stride: int

    def of(self, tensors: Tensors, name: str, clip: int) -> Tensor:
        """A tensor of the clip in this window, frames first."""
        last = self.start + (self.frames - 1) * self.stride
        return tensors.read(name, clip, slice(self.start, last + 1))[:: self.stride]


def draw_window(length: int, frames: int, generator: torch.Generator) -> Window:
    """A window of a clip of `length` frames.

    Short windows take every frame or every few, up to the whole clip's length: what moves far in few frames teaches
    motion at a fraction of the cost.
    """
    stride = 1 + draw_below(max((length - 1) // max(frames - 1, 1), 1), generator) if frames > 1 else 1
    return Window(draw_below(length - (frames - 1) * stride, generator), frames, stride)


def condition_of(
    name: str, tensors: Tensors, clip: int, window: Window, generator: torch.Generator, scale: int | None = None
) -> Tensor:
    """One condition of one clip, `(F, C, H, W)`, frames first, at `scale` times the latent's size; None: the table's,
    at which the tensors are stored."""

    def fitted(stored: Tensor) -> Tensor:
        own = CONDITIONS[name].scale
        return resize_crop(stored.float(), tuple(side * (scale or own) // own for side in stored.shape[-2:]))

    given = {stored: fitted(window.of(tensors, stored, clip))[None] for stored in needed_for(name, generator)}
    return spoiled(name, given, torch.tensor([window.stride]), generator)[0]


def needed_for(name: str, generator: torch.Generator) -> tuple[str, ...]:
    """Which stored tensors a condition is made of. Sketches: outlines as people draw them, or the extractor's edges."""
    if name in ("sketch", "single_sketch"):
        drawn = float(torch.rand((), generator=generator)) < DRAWN
        return ("outline",) if drawn else ("edges",)
    return stored_for(name)


def stored_for(name: str) -> tuple[str, ...]:
    """Which stored tensors a condition other than a sketch is made of."""
    return {"mask": ("video", "object"), "single_image": ("video",)}.get(name, (name,))


def spoiled(name: str, given: Mapping[str, Tensor], stride: Tensor, generator: torch.Generator | None) -> Tensor:
    """One condition of B clips `(B, F, C, H, W)` out of the stored tensors that it needs, as `make_shard` stores them.

    Args:
        stride: `(B,)`, of the clips' windows. Steps of a few frames add up; of the few curved paths the last of them
            stands for all.
        generator: on the tensors' device; None for the device's own.
    """
    if name == "motion":
        return spoil_motion(given["motion"].float() * stride.view(-1, 1, 1, 1, 1), generator)
    if name == "depth":
        return given["depth"].float()
    if name == "mask":
        video, objects = (given[stored].float() / 255 for stored in ("video", "object"))
        keep = draw_mask(objects, generator)
        return torch.cat([(video * 2 - 1) * keep, keep], dim=2)
    (only,) = given.values()
    return only.float() / 255


def draw_mask(objects: Tensor, generator: torch.Generator | None) -> Tensor:
    """What to keep of B clips, `(B, F, 1, S, S)` of {0, 1}: all but the object (a moving mask), a rectangle, or half of
    the frame.

    Args:
        objects: 1 where the first object is, else 0, of the same shape.
    """
    batch, frames, _, size, _ = objects.shape
    kind, *lots = torch.rand(5, batch, 1, 1, 1, 1, device=objects.device, generator=generator).unbind()
    grown = [F.max_pool2d(objects.flatten(0, 1), 2 * by + 1, stride=1, padding=by).view_as(objects) > 0.5
             for by in range(1, 2 + size // 16)]  # fmt: skip
    by = (lots[0] * len(grown)).long()
    moving = torch.stack(grown, -1).gather(-1, by.expand(*objects.shape)[..., None])[..., 0]

    rectangle = kind < RECTANGLE
    sides = [torch.where(rectangle, 0.25 + 0.5 * lots[i], 0.5) for i in (0, 1)]  # height and width of the frame's
    # Half of the frame is a rectangle too, as wide or as high as the frame, at one of its sides.
    across = lots[1] < 0.5
    sides = [torch.where(~rectangle & (across if i else ~across), 1.0, sides[i]) for i in (0, 1)]
    starts = [torch.where(rectangle, lots[2 + i], (lots[0] >= 0.5).float()) * (1 - sides[i]) for i in (0, 1)]
    at = torch.arange(size, device=objects.device)
    first = [(start * size).floor() for start in starts]
    last = [start + (side * size).floor() for start, side in zip(first, sides, strict=True)]
    rows, columns = ((at >= first[i]) & (at < last[i]) for i in (0, 1))
    drawn = (rows.transpose(-1, -2) & columns).expand(-1, frames, -1, -1, -1)
    return 1 - torch.where(kind < MOVING, moving, drawn).float()


def spoil_motion(motion: Tensor, generator: torch.Generator | None) -> Tensor:
    """Exact motion of B clips `(B, F, 2, S, S)` as a codec would have it: blocks, a little noise, spurious and missing
    vectors.

    The first frame's is zero, as in every motion field.
    """
    batch, frames, _, size, _ = motion.shape

    def random(*shape: int) -> Tensor:
        return torch.rand(batch, *shape, device=motion.device, generator=generator)

    jitter, wrong, missing, careless, block = (random(1, 1, 1, 1) for _ in range(5))
    result = torch.empty_like(motion)
    for number, side in enumerate(BLOCKS):
        grid = motion[..., side // 2 :: side, side // 2 :: side]
        cells = grid.shape[-1]
        lots = random(frames, 1, cells, cells)
        noise = torch.randn(grid.shape, device=motion.device, generator=generator)
        grid = grid + JITTER * jitter * noise * (grid != 0)
        lots = torch.where(careless < 0.5, lots, 0.5)  # half of the clips have neither spurious nor missing vectors
        grid = torch.where(lots < WRONG * wrong, 1.5 * noise, grid)
        grid = torch.where(lots > 1 - MISSING * missing, 0.0, grid)
        filled = grid.repeat_interleave(side, -1).repeat_interleave(side, -2)[..., :size, :size]
        chosen = (block * len(BLOCKS)).long() == number
        result = torch.where(chosen, filled, result)
    return torch.cat([torch.zeros_like(result[:, :1]), result[:, 1:]], dim=1)


# --- As samples -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SyntheticClips:
    """Clips of scenes, out of a cache with latents and tokens, or drawn when they are needed.

    Attributes:
        tensors: a `ClipCache` or `DrawnScenes`.
        frames: of a clip.
        style_size: pixels of a side of style images, which drawn scenes give.
        scale: the factor of the autoencoder's latents, which a cache holds without it.
        condition_scale: see `vc_core.config.ExtractionConfig`.
    """

    tensors: ClipCache | DrawnScenes
    frames: int = CLIP
    style_size: int = 224
    scale: float = 1.0
    condition_scale: int | None = None

    def __len__(self) -> int:
        return len(self.tensors)

    def sample(self, index: int, kept: Collection[str], generator: torch.Generator) -> Sample:
        """See `training.data.sample.Clips`."""
        window = draw_window(CLIP, self.frames, generator)
        encode = self._drawn if isinstance(self.tensors, DrawnScenes) else self._cached
        encoded = encode(index, kept, window, generator)
        conditions = {}
        for name in CONDITIONS:
            if name in kept:
                own = window if CONDITIONS[name].kind == "temporal" else Window(window.start, 1, 1)
                made = condition_of(name, self.tensors, index, own, generator, self.condition_scale)
                conditions[name] = made.transpose(0, 1)
        return Sample(f"scene {index}", conditions=conditions, **encoded)

    def _cached(
        self, index: int, kept: Collection[str], window: Window, generator: torch.Generator
    ) -> dict[str, Tensor]:
        text, still = draw_below(CAPTIONS, generator), draw_below(STILLS, generator)
        found = {"latents": window.of(self.tensors, "latents", index).float().transpose(0, 1) * self.scale}
        if "text" in kept:
            found["text_tokens"] = self.tensors.read("text", index, slice(text, text + 1))[0].float()
        if "style" in kept:
            found["style_embedding"] = self.tensors.read("style", index, slice(still, still + 1)).float()
        return found

    def _drawn(
        self, index: int, kept: Collection[str], window: Window, generator: torch.Generator
    ) -> dict[str, Tensor | str]:
        variation, still = draw_below(2**30, generator), draw_below(CLIP, generator)
        found = {"video": window.of(self.tensors, "small", index).transpose(0, 1).float() / 255}
        if "text" in kept:
            found["text"] = captions(self.tensors.scene(index), variation)[0]
        if "style" in kept:
            picture = self.tensors.read("small", index, slice(still, still + 1))[0].float() / 255
            found["style"] = style_image(picture, self.style_size)
        return found
