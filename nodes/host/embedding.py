"""What CONDITIONING carries of the conditions and the style, on its way into the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import comfy.conds
import comfy.utils
import torch
from torch import Tensor

from ...vc_core.conditions import Condition, is_active
from ...vc_core.config import ExtractionConfig
from ...vc_core.diffusion.guidance import Embedded
from ...vc_core.diffusion.windows import Windows
from ...vc_core.extract.refit import refit
from ...vc_core.pipeline import seen_by_window

if TYPE_CHECKING:
    from .network import HostUNet

CONDITIONS = "videocomposer_conditions"
STYLE = "videocomposer_style"
"""Keys in the dictionary of a CONDITIONING."""

CARRY = Windows(1).carry
"""Strength of the single image and sketch in the windows after the first, see `vc_core`'s `Windows`."""


@dataclass(frozen=True)
class StyleImage:
    """Under `STYLE`: an image embedding `(N, 1, D)`, not normalised, and how it is applied; None for no image, which
    is the unconditional side's."""

    embedding: Tensor | None
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0


@dataclass(frozen=True)
class Conditions:
    """The conditions of one sampling run, embedded when a window first needs them and kept until the run ends.

    Attributes:
        given: what was wired.
        size: (h, w) of the whole latent. A condition that was made for another size is scaled to it, and vectors of
            motion with it.
        extraction: the checkpoint's.
        area: sizes, then offsets, along the latent's last dimensions, of the part that is denoised; None for all of it.
    """

    given: tuple[Condition, ...]
    size: tuple[int, int]
    extraction: ExtractionConfig
    area: tuple[int, ...] | None = None
    kept: dict[tuple[Any, ...], list[Embedded]] = field(default_factory=dict)

    def summed(self, unet: HostUNet, x: Tensor, progress: float, window: Any) -> Tensor | None:
        """The sum of the embeddings that are present for x `(B, C, F, h, w)`, `(B, stc_channels, F or 1, h, w)`."""
        present = [e for e in self._embedded(unet, x, window) if e.active(progress)]
        if not present:
            return None
        total = sum(e.strength * e.embedding for e in present)
        if self.area is not None:
            dims = len(self.area) // 2
            for axis, size, offset in zip(range(-dims, 0), self.area[:dims], self.area[dims:], strict=True):
                if total.shape[axis] > 1:  # one frame stands for all
                    total = total.narrow(axis, offset, size)
        return comfy.utils.repeat_to_batch_size(total, len(x))

    def _embedded(self, unet: HostUNet, x: Tensor, window: Any) -> list[Embedded]:
        indexes = None if window is None or window.dim != 2 else frames_of(window)
        key = (indexes, x.device, x.dtype)  # newer versions sample on several devices at once
        if key not in self.kept:
            fitted = [self._fitted(c) for c in self.given if c.strength != 0.0]
            seen = fitted if indexes is None else [seen_by_window(c, indexes, CARRY) for c in fitted]
            self.kept[key] = [
                Embedded(unet.encode_condition(c.name, c.tensor.to(x), self.size), c.strength, c.start, c.end)
                for c in seen
            ]
        return self.kept[key]

    def _fitted(self, condition: Condition) -> Condition:
        size = (8 * self.size[0], 8 * self.size[1])
        count = condition.tensor.shape[2]
        tensor = refit(condition.name, condition.tensor, size, count, self.extraction, condition.video)
        return replace(condition, tensor=tensor, video=size)


def frames_of(window: Any) -> tuple[int, ...]:
    """The numbers of a context window's frames, with the one that newer versions put before it for causal networks."""
    anchor = getattr(window, "causal_anchor_index", None)
    return (*(() if anchor is None or anchor < 0 else (anchor,)), *window.index_list)


@dataclass(frozen=True)
class Style:
    """The style of a batch in which the positive and the negative side may lie one after the other."""

    images: tuple[StyleImage, ...]
    batch: int

    @property
    def _schedule(self) -> tuple[float, float]:
        return self.images[0].start, self.images[0].end

    def active(self, progress: float) -> bool:
        return is_active(1.0, *self._schedule, progress)

    def tokens(self, unet: HostUNet, like: Tensor) -> Tensor:
        """The style tokens `(sides * batch, 1, D)`; the side without an image has the token made from zeros."""
        return torch.cat([self._token(unet, image, like) for image in self.images])

    def _token(self, unet: HostUNet, image: StyleImage, like: Tensor) -> Tensor:
        width = unet.config.context_dim
        if image.embedding is None:
            token = unet.encode_style(like.new_zeros(1, 1, width))
        else:
            token = image.strength * unet.encode_style(image.embedding.to(like))
        return comfy.utils.repeat_to_batch_size(token, self.batch)


class ConditionsCond(comfy.conds.CONDRegular):
    """`Conditions` among a model's inputs: equal ones serve positive and negative at once."""

    cond: Conditions

    def process_cond(self, batch_size: int, area: Sequence[int] | None = None, **kwargs: Any) -> ConditionsCond:
        return self._copy_with(replace(self.cond, area=None if area is None else tuple(area)))

    def can_concat(self, other: ConditionsCond) -> bool:
        ours, theirs = self.cond, other.cond
        return ours.area == theirs.area and [id(c) for c in ours.given] == [id(c) for c in theirs.given]

    def concat(self, others: Sequence[ConditionsCond]) -> Conditions:
        return self.cond

    def size(self) -> list[int]:
        return [1]


class StyleCond(comfy.conds.CONDRegular):
    """`Style` among a model's inputs: sides with and without an image go together where they have one schedule."""

    cond: Style

    def process_cond(self, batch_size: int, **kwargs: Any) -> StyleCond:
        return self._copy_with(replace(self.cond, batch=batch_size))

    def can_concat(self, other: StyleCond) -> bool:
        return self.cond._schedule == other.cond._schedule

    def concat(self, others: Sequence[StyleCond]) -> Style:
        return replace(self.cond, images=(*self.cond.images, *(i for o in others for i in o.cond.images)))

    def size(self) -> list[int]:
        return [1]
