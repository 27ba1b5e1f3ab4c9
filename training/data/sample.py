"""The interface between data sets and training steps: the only types that data, objective and trainer share."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """One clip or image. Each cacheable input is present either in its cached form or as its source.

    `conditions` contains `(C, F or 1, H', W')` by name: the requested ones that need no network on the device. The step
    computes the other requested ones (depth, sketch) from `source`, or from `video`.
    """

    key: str  # names the sample in messages and in the log
    latents: Tensor | None = None  # (4, F, h, w), scaled by the autoencoder's factor
    video: Tensor | None = None  # (3, F, H, W) in [0, 1], at the size of training
    text: str = ""  # caption
    text_tokens: Tensor | None = None  # (77, D)
    style: Tensor | None = None  # image (3, S, S) in [0, 1]; only if style is requested
    style_embedding: Tensor | None = None  # (1, D); only if style is requested
    conditions: dict[str, Tensor] = field(default_factory=dict)
    source: Tensor | None = None  # (3, F or 1, H', W') in [0, 1] at `Form.large`; 1 if only single_sketch needs it


class Clips(Protocol):
    """A data set with random access. The result of `sample` depends only on its arguments."""

    def __len__(self) -> int: ...

    def sample(self, index: int, inputs: Collection[str], generator: torch.Generator) -> Sample:
        """Read sample `index` with the requested `inputs`: names among `text`, `style` and the conditions.

        Raises:
            BadSample: it cannot be read.
        """
        ...


class BadSample(Exception):
    """A sample that cannot be read: skipped and counted, never replaced by zeros. Names the file and the reason."""


@dataclass(frozen=True)
class Batch:
    """Samples of one domain.

    Attributes:
        kept: `(B,)` bool by name: whether a sample keeps text, style and each condition.
        numbers: the samples' numbers in the order of the run. Everything random about a sample depends on its number.
            No two samples of a run, of any domains, have the same number.
        after: number of samples of the domain that all ranks have used after this batch's step. A resumed run
            continues there, see `training.data.order`.
    """

    samples: Sequence[Sample]
    kept: dict[str, Tensor]
    numbers: Sequence[int]
    after: int = 0
    bad: Sequence[str] = ()  # messages on the samples that could not be read and were replaced

    @property
    def frames(self) -> int:
        """Number of frames of each sample."""
        first = self.samples[0]
        return (first.video if first.latents is None else first.latents).shape[1]

    def rows(self, name: str) -> list[int]:
        """Rows of the samples that keep a condition."""
        return self.kept[name].nonzero(as_tuple=True)[0].tolist()
