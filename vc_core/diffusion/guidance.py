"""Classifier-free guidance over the tokens, with the conditions' strengths and schedules."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vc_core.conditions import is_active
from vc_core.model.unet import UNet3D


@dataclass(frozen=True)
class Embedded:
    """A condition after its encoder: an STC embedding or a style token, with when it is present."""

    embedding: Tensor
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def active(self, progress: float) -> bool:
        return is_active(self.strength, self.start, self.end, progress)


class GuidedDenoiser:
    """The guided prediction of a network: `denoiser(x, t)`.

    Guidance compares the text and style with the negative text and the style token made from zeros; the
    spatial-temporal conditions are on both sides, as in the released sampler. Everything here was encoded once.

    Args:
        text, negative: `(B or 1, tokens, D)`.
        style: the style token `(B or 1, 1, D)`, or None where no style is wired, which is not the same as a token of
            zeros: without a style there is no token on either side.
        no_style: the token made from a zero embedding, `(B or 1, 1, D)`.
        stc: STC embeddings `(B or 1, C, F or 1, h, w)`.
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
    ):
        self.unet, self.text, self.negative = unet, text, negative
        self.style, self.no_style, self.stc = style, no_style, tuple(stc)
        self.guidance, self.last = guidance, steps - 1

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        progress = 1.0 - float(t) / self.last
        sides = [tokens.expand(len(x), -1, -1) for tokens in self.contexts(progress)]
        sides = sides[:1] if self.guidance == 1.0 else sides
        stc = self.summed(progress)
        stc = None if stc is None else torch.cat([stc.expand(len(x), -1, -1, -1, -1)] * len(sides))
        out = self.unet(torch.cat([x] * len(sides)), t.to(x.device).expand(len(x) * len(sides)), torch.cat(sides), stc)
        if len(sides) == 1:
            return out
        positive, negative = out.chunk(2)
        return negative + self.guidance * (positive - negative)

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
