"""What a data set gives and what a step takes. The only words that data, objective and trainer share."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """One clip or image. Of what can be cached, either the cached form or what it is made from is there.

    `conditions` are by name `(C, F or 1, H', W')`, only those that are kept and need no network on the device; what is
    kept and not here (depth, sketch) is made from `source`, or from `video`, by the step.
    """

    key: str  # tells the sample in messages and in the log
    latents: Tensor | None = None  # (4, F, h, w), scaled by the autoencoder's factor
    video: Tensor | None = None  # (3, F, H, W) in [0, 1], at the size of training
    text: str = ""  # caption
    text_tokens: Tensor | None = None  # (77, D)
    style: Tensor | None = None  # image (3, S, S) in [0, 1]; only where style is kept
    style_embedding: Tensor | None = None  # (1, D); only where style is kept
    conditions: dict[str, Tensor] = field(default_factory=dict)
    source: Tensor | None = None  # (3, F or 1, H', W') in [0, 1] at `Form.large`; 1 where single_sketch alone needs it


class Clips(Protocol):
    """A data set that is read as a map. `sample` is a function of its arguments alone."""

    def __len__(self) -> int: ...

    def sample(self, index: int, kept: Collection[str], generator: torch.Generator) -> Sample:
        """Sample `index`, with those of `text`, `style` and the condition table that are `kept`.

        Raises:
            BadSample: it cannot be read.
        """
        ...


class BadSample(Exception):
    """A sample that cannot be read: skipped and counted, never turned into zeros. Names the file and the reason."""


@dataclass(frozen=True)
class Batch:
    """Samples of one domain.

    Attributes:
        kept: by name, `(B,)` bool: which samples keep text, style and each condition.
        numbers: of the samples in the order of the run, which everything random of them is a function of. No two
            samples of a run have the same, of whatever domains they are.
        after: how many samples of its domain, on all ranks, are taken once this batch's step is done: where a resumed
            run goes on, see `training.data.order`.
    """

    samples: Sequence[Sample]
    kept: dict[str, Tensor]
    numbers: Sequence[int]
    after: int = 0
    bad: Sequence[str] = ()  # of each sample that could not be read, and that another one stands for, which and why

    @property
    def frames(self) -> int:
        """Of each sample."""
        first = self.samples[0]
        return (first.video if first.latents is None else first.latents).shape[1]

    def rows(self, name: str) -> list[int]:
        """Positions of the samples that keep a condition."""
        return self.kept[name].nonzero(as_tuple=True)[0].tolist()
