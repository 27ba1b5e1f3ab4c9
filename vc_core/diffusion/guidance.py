"""Classifier-free guidance over tokens and conditions, with the conditions' strengths and schedules."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..conditions import is_active
from ..model.unet import UNet3D

NOTHING, CONDITIONS, EVERYTHING = range(3)
"""Sides of the guidance: with neither tokens nor conditions, with the conditions alone, with tokens and conditions."""


@dataclass(frozen=True)
class Embedded:
    """A condition after its encoder: an STC embedding or a style token, with when it is present."""

    embedding: Tensor
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def active(self, progress: float) -> bool:
        return is_active(self.strength, self.start, self.end, progress)


def needed_sides(guidance: float, condition_guidance: float) -> tuple[list[int], list[float]]:
    """The sides that `combine` needs, and the scale of each one's difference from the side before it.

    Without loss: a last side that counts 0 times is left out, and so are a middle one between equal scales and a
    first one that cancels. With `condition_guidance` 1 these are the released two sides; with both 1, one.
    """
    sides, scales = [NOTHING, CONDITIONS, EVERYTHING], [condition_guidance, guidance]
    while scales and scales[-1] == 0.0:
        sides.pop(), scales.pop()
    if len(scales) == 2 and scales[0] == scales[1]:
        del sides[1], scales[1]
    if scales and scales[0] == 1.0:
        del sides[0], scales[0]
    return sides, scales


def combine(predictions: Sequence[Tensor], scales: Sequence[float], rescale: float = 0.0) -> Tensor:
    """The guided prediction: the first side's, plus each further side's difference from the one before, scaled.

    With all three sides, and y for text and style, c for the conditions, that is
    e(0, 0) + condition_guidance * (e(0, c) - e(0, 0)) + guidance * (e(y, c) - e(0, c)),
    as InstructPix2Pix does it (arXiv 2211.09800, equation 3).

    Args:
        predictions: the sides' predictions, each `(B, ...)`, the one with most conditions last.
        scales: one fewer than predictions.
        rescale: share, 0 to 1, by which the result's standard deviation is brought back to the last side's, taken over
            all but the batch (arXiv 2305.08891, section 3.4). Guidance makes it larger, which overexposes.
    """
    guided = predictions[0]
    for scale, before, after in zip(scales, predictions, predictions[1:], strict=False):
        guided = guided + scale * (after - before)
    if rescale == 0.0 or not scales:
        return guided
    factor = _deviation(predictions[-1]) / _deviation(guided)
    return guided * (rescale * factor + (1.0 - rescale))


def _deviation(x: Tensor) -> Tensor:
    return x.std(dim=tuple(range(1, x.ndim)), keepdim=True)


class GuidedDenoiser:
    """The guided prediction of a network: `denoiser(x, t)`.

    Guidance compares the text and style with the negative text and the style token made from zeros; the
    spatial-temporal conditions are on both sides, as in the released sampler, unless `condition_guidance` is not 1.
    Everything here was encoded once.

    Args:
        text, negative: `(B or 1, tokens, D)`, in the type that the network computes in.
        style: the style token `(B or 1, 1, D)`, or None where no style is wired, which is not the same as a token of
            zeros: without a style there is no token on either side.
        no_style: the token made from a zero embedding, `(B or 1, 1, D)`.
        stc: STC embeddings `(B or 1, C, F or 1, h, w)`.
        guidance, condition_guidance, rescale: see `combine`.
        steps: of the noise schedule that the network was trained on.
    """

    def __init__(
        self,
        unet: UNet3D,
        text: Tensor,
        negative: Tensor,
        style: Embedded | None,
        no_style: Tensor,
        stc: Sequence[Embedded],
        guidance: float,
        steps: int = 1000,
        condition_guidance: float = 1.0,
        rescale: float = 0.0,
    ):
        self.unet, self.text, self.negative = unet, text, negative
        self.style, self.no_style, self.stc = style, no_style, tuple(stc)
        self.guidance, self.condition_guidance, self.rescale = guidance, condition_guidance, rescale
        self.last = steps - 1

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """The prediction for x `(B, C, F, h, w)` at t, a scalar in [0, steps), in x's type."""
        progress = 1.0 - float(t) / self.last
        positive, negative = self.contexts(progress)
        stc = self.summed(progress)
        # Where no condition is present, a side with the conditions is a side without.
        sides, scales = needed_sides(self.guidance, 1.0 if stc is None else self.condition_guidance)
        contexts = [positive if side == EVERYTHING else negative for side in sides]
        contexts = torch.cat([context.expand(len(x), -1, -1) for context in contexts])
        if stc is not None:
            stc = stc.expand(len(x), -1, -1, -1, -1)
            stc = torch.cat([torch.zeros_like(stc) if side == NOTHING else stc for side in sides])
        noisy = torch.cat([x.to(self.text.dtype)] * len(sides))
        prediction = self.unet(noisy, t.to(x.device).expand(len(noisy)), contexts, stc)
        return combine(prediction.to(x.dtype).chunk(len(sides)), scales, self.rescale)

    def contexts(self, progress: float) -> tuple[Tensor, Tensor]:
        """Tokens of the positive and the negative side, `(B or 1, tokens, D)`, equally long."""
        positive, negative = _same_length(self.text, self.negative)
        if self.style is not None and self.style.active(progress):
            positive = _appended(positive, self.style.strength * self.style.embedding)
            negative = _appended(negative, self.no_style)
        return positive, negative

    def summed(self, progress: float) -> Tensor | None:
        """The sum of the STC embeddings that are present, each times its strength; None where none is."""
        present = [c.strength * c.embedding for c in self.stc if c.active(progress)]
        return sum(present[1:], present[0]) if present else None


def _same_length(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both repeated to their common length: attention to a repeated context is attention to the context."""
    length = math.lcm(a.shape[1], b.shape[1])
    return a.repeat(1, length // a.shape[1], 1), b.repeat(1, length // b.shape[1], 1)


def _appended(tokens: Tensor, last: Tensor) -> Tensor:
    batch = max(len(tokens), len(last))
    return torch.cat([tokens.expand(batch, -1, -1), last.expand(batch, -1, -1)], dim=1)
