"""The conditions, the style and the later texts in a CONDITIONING, and how they reach the network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.conds
import comfy.utils
import torch
from torch import Tensor

from ...vc_core.conditions import Condition, Schedule
from ...vc_core.config import ExtractionConfig
from ...vc_core.diffusion.guidance import Embedded, summed
from ...vc_core.diffusion.texts import tokens_of_window
from ...vc_core.diffusion.windows import Windows
from ...vc_core.extract.refit import refit
from ...vc_core.model.unet import UNet3D
from ...vc_core.pipeline import seen_by_window

CONDITIONS_KEY = "videocomposer_conditions"
STYLE_KEY = "videocomposer_style"
TEXTS_KEY = "videocomposer_texts"
"""Keys in the dictionary of a CONDITIONING: the conditions; the style as an `Embedded` with the image embedding
`(N, 1, D)`, not normalised; the tokens `(1, 77 n, D)` of later texts by frame, ascending. The style's embedding is None
on the unconditional side, which has no image."""


@dataclass(frozen=True)
class Conditions:
    """The conditions of one sampling run. They are embedded when a window first needs them and cached for the run.

    Attributes:
        conditions: the connected conditions.
        size: (h, w) of the entire latent. A condition for another size is scaled to it, together with the length of its
            motion vectors.
        extraction: the checkpoint's.
        area: sizes, then offsets, along the last dimensions of the latent, of the part that is denoised. None is all.
        cache: embedded conditions, by window, device and dtype.
    """

    conditions: tuple[Condition, ...]
    size: tuple[int, int]
    extraction: ExtractionConfig
    area: tuple[int, ...] | None = None
    cache: dict[tuple[Any, ...], list[Embedded]] = field(default_factory=dict)

    def summed(self, unet: UNet3D, x: Tensor, progress: float, window: Any) -> Tensor | None:
        """Return the sum `(B, stc_channels, F or 1, h, w)` of the active embeddings, for x `(B, C, F, h, w)`."""
        total = summed(self._embedded(unet, x, window), progress)
        if total is None:
            return None
        if self.area is not None:
            dims = len(self.area) // 2
            for axis, size, offset in zip(range(-dims, 0), self.area[:dims], self.area[dims:], strict=True):
                if total.shape[axis] > 1:  # a single frame applies to all
                    total = total.narrow(axis, offset, size)
        return comfy.utils.repeat_to_batch_size(total, len(x))

    def _embedded(self, unet: UNet3D, x: Tensor, window: Any) -> list[Embedded]:
        indexes = None
        if window is not None and window.dim == 2:
            # Newer ComfyUI versions may add a frame before the window, for causal networks.
            anchor = getattr(window, "causal_anchor_index", None)
            indexes = (*(() if anchor is None or anchor < 0 else (anchor,)), *window.index_list)
        key = (indexes, x.device, x.dtype)  # newer ComfyUI versions sample on several devices at once
        if key not in self.cache:
            conditions = [self._fitted(c) for c in self.conditions if c.strength != 0.0]
            if indexes is not None:
                conditions = [seen_by_window(c, indexes, Windows.carry) for c in conditions]
            self.cache[key] = [
                Embedded(unet.encode_condition(c.name, c.tensor.to(x), self.size), c.schedule) for c in conditions
            ]
        return self.cache[key]

    def _fitted(self, condition: Condition) -> Condition:
        return fitted(condition, self.size, self.extraction)

    def processed(self, batch: int, area: Sequence[int] | None) -> Conditions:
        return replace(self, area=None if area is None else tuple(area))

    def matches(self, other: Conditions) -> bool:
        return self.area == other.area and [id(c) for c in self.conditions] == [id(c) for c in other.conditions]

    def joined(self, others: Sequence[Conditions]) -> Conditions:
        return self


def fitted(condition: Condition, latent: tuple[int, int], extraction: ExtractionConfig) -> Condition:
    """Return a condition scaled to a latent's size (h, w)."""
    size = (8 * latent[0], 8 * latent[1])
    tensor = refit(condition.name, condition.tensor, size, condition.tensor.shape[2], extraction, condition.video)
    return replace(condition, tensor=tensor, video=size)


@dataclass(frozen=True)
class Styles:
    """The styles of a batch, which may contain the positive and the negative side. All share one schedule.

    Attributes:
        images: one per side, see `STYLE_KEY`.
        batch: number of videos per side.
    """

    images: tuple[Embedded, ...]
    batch: int

    @property
    def schedule(self) -> Schedule:
        return replace(self.images[0].schedule, strength=1.0)  # the strength differs between the sides

    def tokens(self, unet: UNet3D, like: Tensor) -> Tensor:
        """Return the style tokens `(sides * batch, n, D)`. A side without an image gets the tokens of zeros."""
        return torch.cat([self._token(unet, image, like) for image in self.images])

    def _token(self, unet: UNet3D, image: Embedded, like: Tensor) -> Tensor:
        none = like.new_zeros(1, 1, unet.config.context_dim)
        token = unet.encode_style(none if image.embedding is None else image.embedding.to(like))
        return comfy.utils.repeat_to_batch_size(image.schedule.strength * token, self.batch)

    def processed(self, batch: int, area: Sequence[int] | None) -> Styles:
        return replace(self, batch=batch)

    def matches(self, other: Styles) -> bool:
        return self.schedule == other.schedule

    def joined(self, others: Sequence[Styles]) -> Styles:
        return replace(self, images=(*self.images, *(image for other in others for image in other.images)))


@dataclass(frozen=True)
class Texts:
    """Texts that follow the text of a CONDITIONING in later frames.

    Attributes:
        later: see `TEXTS_KEY`.
        frames: number of frames of the entire video.
    """

    later: dict[int, Tensor]
    frames: int

    def tokens(self, first: Tensor, window: Any) -> Tensor:
        """Return the context `(B, 77 n, D)` of a window, for the context of the first frame; see `tokens_of_window`."""
        numbers = window.index_list if window is not None and window.dim == 2 else range(self.frames)
        length = math.lcm(first.shape[1], *(tokens.shape[1] for tokens in self.later.values()))
        texts = {0: first, **{frame: tokens.to(first) for frame, tokens in self.later.items()}}
        # Attention to a repeated context equals attention to the context.
        texts = {frame: tokens.repeat(1, length // tokens.shape[1], 1) for frame, tokens in texts.items()}
        return tokens_of_window(texts, slice(min(numbers), max(numbers) + 1), self.frames)

    def processed(self, batch: int, area: Sequence[int] | None) -> Texts:
        return self

    def matches(self, other: Texts) -> bool:
        return self.later is other.later

    def joined(self, others: Sequence[Texts]) -> Texts:
        return self


class Carried(comfy.conds.CONDRegular):
    """`Conditions`, `Styles` or `Texts` as a model input. ComfyUI batches the positive and the negative side if both
    have the same conditions and later texts, and styles of the same schedule, with or without an image."""

    cond: Conditions | Styles | Texts

    def process_cond(self, batch_size: int, area: Sequence[int] | None = None, **kwargs: Any) -> Carried:
        return self._copy_with(self.cond.processed(batch_size, area))

    def can_concat(self, other: Carried) -> bool:
        return self.cond.matches(other.cond)

    def concat(self, others: Sequence[Carried]) -> Conditions | Styles | Texts:
        return self.cond.joined([other.cond for other in others])

    def size(self) -> list[int]:
        return [1]
