"""The condition table: everything that is spatial or temporal in a VideoComposer checkpoint, one row each.

The table drives the STC-encoders, the file format, the dropout of training, the extractors and the help texts. Adding
a condition means adding a row, and an extractor in `vc_core.extract.sources`. (Text and style are tokens, not rows:
they enter through cross-attention.)
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .errors import UserError


@dataclass(frozen=True)
class ConditionSpec:
    """One row of the table.

    Attributes:
        channels: channels of the condition's tensor `(B, channels, F, H, W)`.
        kind: `temporal` has a tensor for every frame; `spatial` has one (F = 1), which holds for all frames.
        size: height and width at the released 256 x 256 video size.
        scale: the same as a multiple of the latent size, for every other size.
        low, high: range of the values that the network was trained on, in `unit`.
        released: prefixes of the released convolutional stem and of its temporal Transformer layer.
        guidance_key: argument name of the released network's forward.
        annotated: an annotator draws it of the frames alone, with a network where there is one: on a device, and in
            training in the step.
    """

    name: str
    channels: int
    kind: Literal["temporal", "spatial"]
    size: int
    low: float
    high: float
    unit: str
    released: tuple[str, str]
    guidance_key: str
    annotated: bool = False

    @property
    def scale(self) -> int:
        return self.size // 32


_INF = float("inf")

_ROWS = (
    # name, channels, kind, size, low, high, unit, stem prefix, temporal layer prefix, guidance key, annotated
    ("motion", 2, "temporal", 256, -_INF, _INF, "pixels moved since the previous frame",
     "motion_embedding", "motion_embedding_after", "motion", False),
    ("depth", 1, "temporal", 384, 0.0, 10.0, "MiDaS inverse depth / 20",
     "depth_embedding", "depth_embedding_after", "depth", True),
    ("sketch", 1, "temporal", 384, 0.0, 1.0, "line brightness",
     "sketch_embedding", "sketch_embedding_after", "sketch", True),
    ("mask", 4, "temporal", 384, -1.0, 1.0, "RGB in [-1, 1] times keep, then keep (1 = keep, 0 = paint)",
     "masked_embedding", "mask_embedding_after", "masked", False),
    ("single_image", 3, "spatial", 384, 0.0, 1.0, "RGB",
     "local_image_embedding", "local_image_embedding_after", "local_image", False),
    ("single_sketch", 1, "spatial", 384, 0.0, 1.0, "line brightness",
     "single_sketch_embedding", "single_sketch_embedding_after", "single_sketch", True),
)  # fmt: skip

CONDITIONS: dict[str, ConditionSpec] = {row[0]: ConditionSpec(*row[:7], row[7:9], *row[9:]) for row in _ROWS}
ANNOTATED = tuple(name for name, row in CONDITIONS.items() if row.annotated)


def condition_size(name: str, size: tuple[int, int], scale: int | None = None) -> tuple[int, int]:
    """(height, width) that a network takes a condition at, for a video of `size`: `scale` times the latent's.

    `scale` is the checkpoint's own, `ExtractionConfig.condition_scale`; None: the table's, 8 for motion and else 12.
    """
    return tuple((scale or CONDITIONS[name].scale) * side // 8 for side in size)


def drawing_size(name: str, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) that a condition is drawn at, and pictures are taken at for it, whatever the checkpoint.

    That is the table's own size: thresholds and lines' widths of the annotators hold there, motion's single points are
    not lost, and its map is as large as the video of `size`, whose pixels vectors are in.
    """
    return condition_size(name, size)


@dataclass(frozen=True)
class Schedule:
    """How strongly and when a condition, a style or what an encoder made of one is present.

    Attributes:
        strength: factor on the embedding; 0 is exactly absent.
        start, end: fractions of the sampling from which on and before which it is present; an end of 1 never comes.
    """

    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def check(self, name: str) -> None:
        """Refuses for the condition of a name what cannot be meant. Raises `UserError`."""
        if not 0.0 <= self.start <= self.end <= 1.0:
            raise UserError(
                f"Condition '{name}' runs from {self.start} to {self.end}: expected 0 <= start <= end <= 1."
            )
        if not math.isfinite(self.strength):
            raise UserError(f"Condition '{name}' has the strength {self.strength}: expected a finite number.")

    def active(self, progress: float) -> bool:
        """Whether it is present at `progress` in [0, 1] of the sampling."""
        return self.strength != 0.0 and self.start <= progress and (progress < self.end or self.end == 1.0)


@dataclass(frozen=True)
class Condition:
    """A condition of one video: a row of the table with its tensor and how it is to be applied.

    Attributes:
        name: a key of `CONDITIONS`.
        tensor: `(B, channels, F, H, W)`; F = 1 for spatial conditions, else the number of frames.
        strength, start, end: see `Schedule`.
        video: (height, width) of the video that it was made for, in whose pixels vectors are; None: of the one that is
            composed.

    Raises:
        UserError: unknown name, wrong number of channels, no values at all or values that are not finite.
    """

    name: str
    tensor: Tensor
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    video: tuple[int, int] | None = None

    @property
    def schedule(self) -> Schedule:
        return Schedule(self.strength, self.start, self.end)

    def __post_init__(self) -> None:
        spec = CONDITIONS.get(self.name)
        if spec is None:
            raise UserError(f"Unknown condition '{self.name}': expected one of {', '.join(CONDITIONS)}.")
        has = f"Condition '{self.name}' has the shape {tuple(self.tensor.shape)}"
        if self.tensor.ndim != 5 or self.tensor.shape[1] != spec.channels:
            raise UserError(f"{has}: expected (batch, {spec.channels}, frames, height, width).")
        if self.tensor.numel() == 0:
            raise UserError(f"{has}, which is empty: expected at least 1 along each dimension.")
        if not torch.isfinite(self.tensor).all():
            raise UserError(f"Condition '{self.name}' holds values that are not finite: check the source it came from.")
        self.schedule.check(self.name)
