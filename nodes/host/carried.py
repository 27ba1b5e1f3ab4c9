"""What CONDITIONING carries of the conditions and the style, on its way into the network."""

from __future__ import annotations

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
from ...vc_core.diffusion.windows import Windows
from ...vc_core.extract.refit import refit
from ...vc_core.model.unet import UNet3D
from ...vc_core.pipeline import seen_by_window

CONDITIONS_KEY = "videocomposer_conditions"
STYLE_KEY = "videocomposer_style"
"""In the dictionary of a CONDITIONING: the conditions; the image embedding `(N, 1, D)` as an `Embedded`, not
normalised, and None in it for no image, which is the unconditional side's."""


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

    def summed(self, unet: UNet3D, x: Tensor, progress: float, window: Any) -> Tensor | None:
        """The sum of the embeddings that are present for x `(B, C, F, h, w)`, `(B, stc_channels, F or 1, h, w)`."""
        total = summed(self._embedded(unet, x, window), progress)
        if total is None:
            return None
        if self.area is not None:
            dims = len(self.area) // 2
            for axis, size, offset in zip(range(-dims, 0), self.area[:dims], self.area[dims:], strict=True):
                if total.shape[axis] > 1:  # one frame stands for all
                    total = total.narrow(axis, offset, size)
        return comfy.utils.repeat_to_batch_size(total, len(x))

    def _embedded(self, unet: UNet3D, x: Tensor, window: Any) -> list[Embedded]:
        indexes = None
        if window is not None and window.dim == 2:
            # Newer versions may put a frame before it, for causal networks.
            anchor = getattr(window, "causal_anchor_index", None)
            indexes = (*(() if anchor is None or anchor < 0 else (anchor,)), *window.index_list)
        key = (indexes, x.device, x.dtype)  # newer versions sample on several devices at once
        if key not in self.kept:
            seen = [self._fitted(c) for c in self.given if c.strength != 0.0]
            if indexes is not None:
                seen = [seen_by_window(c, indexes, Windows.carry) for c in seen]
            self.kept[key] = [
                Embedded(unet.encode_condition(c.name, c.tensor.to(x), self.size), c.schedule) for c in seen
            ]
        return self.kept[key]

    def _fitted(self, condition: Condition) -> Condition:
        size = (8 * self.size[0], 8 * self.size[1])
        count = condition.tensor.shape[2]
        tensor = refit(condition.name, condition.tensor, size, count, self.extraction, condition.video)
        return replace(condition, tensor=tensor, video=size)

    def processed(self, batch: int, area: Sequence[int] | None) -> Conditions:
        return replace(self, area=None if area is None else tuple(area))

    def goes_with(self, other: Conditions) -> bool:
        return self.area == other.area and [id(c) for c in self.given] == [id(c) for c in other.given]

    def joined(self, others: Sequence[Conditions]) -> Conditions:
        return self


@dataclass(frozen=True)
class Styles:
    """The styles of a batch in which the positive and the negative side may lie one after the other, on one schedule.

    Attributes:
        images: of each side, see `STYLE_KEY`.
        batch: videos of a side.
    """

    images: tuple[Embedded, ...]
    batch: int

    @property
    def schedule(self) -> Schedule:
        return replace(self.images[0].schedule, strength=1.0)  # which is each side's own

    def tokens(self, unet: UNet3D, like: Tensor) -> Tensor:
        """The style tokens `(sides * batch, n, D)`; the side without an image has the token made from zeros."""
        return torch.cat([self._token(unet, image, like) for image in self.images])

    def _token(self, unet: UNet3D, image: Embedded, like: Tensor) -> Tensor:
        none = like.new_zeros(1, 1, unet.config.context_dim)
        token = unet.encode_style(none if image.embedding is None else image.embedding.to(like))
        return comfy.utils.repeat_to_batch_size(image.schedule.strength * token, self.batch)

    def processed(self, batch: int, area: Sequence[int] | None) -> Styles:
        return replace(self, batch=batch)

    def goes_with(self, other: Styles) -> bool:
        return self.schedule == other.schedule

    def joined(self, others: Sequence[Styles]) -> Styles:
        return replace(self, images=(*self.images, *(image for other in others for image in other.images)))


class Carried(comfy.conds.CONDRegular):
    """`Conditions` or `Styles` among a model's inputs: equal conditions serve positive and negative at once, and styles
    of one schedule go together, those of a side without an image too."""

    cond: Conditions | Styles

    def process_cond(self, batch_size: int, area: Sequence[int] | None = None, **kwargs: Any) -> Carried:
        return self._copy_with(self.cond.processed(batch_size, area))

    def can_concat(self, other: Carried) -> bool:
        return self.cond.goes_with(other.cond)

    def concat(self, others: Sequence[Carried]) -> Conditions | Styles:
        return self.cond.joined([other.cond for other in others])

    def size(self) -> list[int]:
        return [1]
