"""Classifier-free guidance over tokens and conditions, with the conditions' strengths and schedules."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..conditions import Schedule

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""`denoiser(x, t)`: the guided prediction for the noisy latent x at the timestep t, a scalar tensor, whole or not."""

NOTHING, CONDITIONED, EVERYTHING = range(3)
"""Sides of the guidance: with neither tokens nor conditions, with the conditions alone, with tokens and conditions."""


@dataclass(frozen=True)
class Embedded:
    """What an encoder made of a condition or a style, an STC embedding or a token (a host has None for no image), with
    when it is present."""

    embedding: Tensor | None
    schedule: Schedule = field(default_factory=Schedule)

    def weighted(self) -> Tensor:
        return self.schedule.strength * self.embedding


def summed(embedded: Sequence[Embedded], progress: float) -> Tensor | None:
    """The sum of the STC embeddings that are present, each times its strength; None where none is."""
    present = [e.weighted() for e in embedded if e.schedule.active(progress)]
    return sum(present[1:], present[0]) if present else None


def needed_sides(guidance: float, condition_guidance: float) -> tuple[list[int], list[float]]:
    """The sides that `combine` needs, and the scale of each one's difference from the side before it.

    Without loss: a last side that counts 0 times is left out, and so are a middle one between equal scales and a
    first one that cancels. With `condition_guidance` 1 these are the released two sides; with both 1, one.
    """
    sides, scales = [NOTHING, CONDITIONED, EVERYTHING], [condition_guidance, guidance]
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
    wanted, found = (x.std(dim=tuple(range(1, x.ndim)), keepdim=True) for x in (predictions[-1], guided))
    return guided * (rescale * (wanted / found) + (1.0 - rescale))


@dataclass
class GuidedDenoiser:
    """The guided prediction of a network: `denoiser(x, t)`.

    Guidance compares the text and style with the negative text and the style token made from zeros; the
    spatial-temporal conditions are on both sides, as in the released sampler, unless `condition_guidance` is not 1.
    Everything here was encoded once.

    Attributes:
        unet: a network's prediction of x, timesteps, context and stc, see `UNet3D`.
        text, negative: `(B or 1, tokens, D)`, in the type that the network computes in.
        style: the style tokens `(B or 1, n, D)`, or None where no style is wired, which is not the same as tokens of
            zeros: without a style there are none on either side.
        no_style: the tokens made from a zero embedding, `(B or 1, n, D)`; None where there is no style.
        stc: STC embeddings `(B or 1, C, F or 1, h, w)`.
        guidance, condition_guidance, rescale: see `combine`.
        steps: of the noise schedule that the network was trained on.
    """

    unet: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
    text: Tensor
    negative: Tensor
    style: Embedded | None
    no_style: Tensor | None
    stc: Sequence[Embedded]
    guidance: float
    condition_guidance: float = 1.0
    rescale: float = 0.0
    steps: int = 1000

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """The prediction for x `(B, C, F, h, w)` at t, a scalar in [0, steps), in x's type."""
        progress = 1.0 - float(t) / (self.steps - 1)
        positive, negative = self.contexts(progress)
        stc = summed(self.stc, progress)
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
        length = math.lcm(self.text.shape[1], self.negative.shape[1])
        # Attention to a repeated context is attention to the context.
        positive, negative = (x.repeat(1, length // x.shape[1], 1) for x in (self.text, self.negative))
        if self.style is not None and self.style.schedule.active(progress):
            positive = _appended(positive, self.style.weighted())
            negative = _appended(negative, self.no_style)
        return positive, negative


def _appended(tokens: Tensor, last: Tensor) -> Tensor:
    batch = max(len(tokens), len(last))
    return torch.cat([tokens.expand(batch, -1, -1), last.expand(batch, -1, -1)], dim=1)
