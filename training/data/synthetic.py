"""The synthetic data set: scenes, their pixels and ground truth, their captions; and the clips that training takes of
them, spoiled as real extractors would."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.making import draw_below, style_image
from training.data.sample import Sample
from vc_core.conditions import CONDITIONS
from vc_core.extract import Rectangle, drawn_mask, edges, half, masked_video
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
    at which all are made."""

    def size(made: Tensor) -> tuple[int, int]:
        own = CONDITIONS[name].scale
        return tuple(side * (scale or own) // own for side in made.shape[-2:])

    if name == "mask":
        video = window.of(tensors, "video", clip).float() / 255
        keep = draw_mask(window.of(tensors, "object", clip).float() / 255, generator)
        masked = masked_video(video.transpose(0, 1)[None], keep.transpose(0, 1)[None], size(video))
        return masked[0].transpose(0, 1)
    made = _made(name, tensors, clip, window, generator)
    return resize_crop(made, size(made))  # vectors stay: they are in pixels of the video


def _made(name: str, tensors: Tensors, clip: int, window: Window, generator: torch.Generator) -> Tensor:
    """A condition other than the mask, at the size of the table."""
    if name == "motion":
        # Steps of a few frames add up; for the few curved paths the last of them stands for all.
        return spoil_motion(window.of(tensors, "motion", clip).float() * window.stride, generator)
    if name == "depth":
        return window.of(tensors, "depth", clip).float()
    if name in ("sketch", "single_sketch"):  # outlines as people draw them, edges as the extractor finds them
        drawn = float(torch.rand((), generator=generator)) < 0.4
        return window.of(tensors, "outline" if drawn else "edges", clip).float() / 255
    return window.of(tensors, "video", clip).float() / 255


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
