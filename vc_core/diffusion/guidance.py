"""Classifier-free guidance with tokens and conditions, and the conditions' strengths and schedules."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..conditions import Schedule

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""`denoiser(x, t)`: the guided prediction for the noisy latent x at timestep t, a scalar tensor, maybe fractional."""

NOTHING, CONDITIONED, EVERYTHING = range(3)
"""Sides of the guidance: without tokens and conditions, with conditions only, with tokens and conditions."""


@dataclass(frozen=True)
class Embedded:
    """An encoded condition or style (an STC embedding or tokens; a host uses None for no image) and its schedule."""

    embedding: Tensor | None
    schedule: Schedule = field(default_factory=Schedule)

    def weighted(self) -> Tensor:
        return self.schedule.strength * self.embedding


def summed(embedded: Sequence[Embedded], progress: float) -> Tensor | None:
    """The sum of the STC embeddings that are active, each times its strength; None if none is active."""
    active = [e.weighted() for e in embedded if e.schedule.active(progress)]
    return sum(active[1:], active[0]) if active else None


def needed_sides(guidance: float, condition_guidance: float) -> tuple[list[int], list[float]]:
    """The sides that `combine` needs, and the scale of each side's difference from the previous side.

    Sides without effect are omitted: a last side with scale 0, a middle side between equal scales, and a first side
    that cancels out. With `condition_guidance` 1 the result is the two released sides; with both scales 1, one side.
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
    """The guided prediction: the first side, plus each further side's difference from the previous side, scaled.

    With all three sides, y for text and style, and c for the conditions, this is
    e(0, 0) + condition_guidance * (e(0, c) - e(0, 0)) + guidance * (e(y, c) - e(0, c)),
    as in InstructPix2Pix (arXiv 2211.09800, equation 3).

    Args:
        predictions: the sides' predictions, each `(B, ...)`. The last has the most conditions.
        scales: one fewer than predictions.
        rescale: 0 to 1: how far to reduce the result's standard deviation to the last side's, computed for each video
            (arXiv 2305.08891, section 3.4). Guidance increases it, which overexposes the video.
    """
    guided = predictions[0]
    for scale, previous, side in zip(scales, predictions, predictions[1:], strict=False):
        guided = guided + scale * (side - previous)
    if rescale == 0.0 or not scales:
        return guided
    target, actual = (x.std(dim=tuple(range(1, x.ndim)), keepdim=True) for x in (predictions[-1], guided))
    return guided * (rescale * (target / actual) + (1.0 - rescale))


@dataclass
class GuidedDenoiser:
    """The guided prediction of a network: `denoiser(x, t)`.

    Guidance compares the text and style with the negative text and the style tokens of a zero embedding. The spatial
    and temporal conditions are on both sides, as in the released sampler, unless `condition_guidance` is not 1.
    All inputs are already encoded.

    Attributes:
        unet: the network, called with x, timesteps, context and stc, see `UNet3D`.
        text, negative: `(B or 1, tokens, D)`, in the dtype that the network computes in.
        style: the style tokens `(B or 1, n, D)`. None means no style tokens on either side, which differs from tokens
            of a zero embedding.
        no_style: the style tokens of a zero embedding, `(B or 1, n, D)`; None without a style.
        stc: STC embeddings `(B or 1, C, F or 1, h, w)`.
        guidance, condition_guidance, rescale: see `combine`.
        steps: number of steps of the network's noise schedule.
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
        """The prediction for x `(B, C, F, h, w)` at t, a scalar in [0, steps), in the dtype of x."""
        progress = 1.0 - float(t) / (self.steps - 1)
        positive, negative = self.contexts(progress)
        stc = summed(self.stc, progress)
        # Without active conditions, the sides with and without conditions are the same.
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
        """Tokens of the positive and the negative side, `(B or 1, tokens, D)`, of equal length."""
        length = math.lcm(self.text.shape[1], self.negative.shape[1])
        # Attention to a repeated context equals attention to the context.
        positive, negative = (x.repeat(1, length // x.shape[1], 1) for x in (self.text, self.negative))
        if self.style is not None and self.style.schedule.active(progress):
            positive = _appended(positive, self.style.weighted())
            negative = _appended(negative, self.no_style)
        return positive, negative


def _appended(tokens: Tensor, last: Tensor) -> Tensor:
    batch = max(len(tokens), len(last))
    return torch.cat([tokens.expand(batch, -1, -1), last.expand(batch, -1, -1)], dim=1)
