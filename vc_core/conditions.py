"""The condition table: one row for each spatial or temporal condition of a VideoComposer checkpoint.

The table drives the STC-encoders, the file format, the dropout of training, the extractors and the help texts. Adding
a condition means adding a row, and an extractor in `vc_core.extract.sources`. (Text and style are tokens, not rows:
they enter through cross-attention.)
"""

import math
from dataclasses import dataclass
from numbers import Real
from typing import Literal

import torch
from torch import Tensor

from .errors import UserError, check_type, shown


@dataclass(frozen=True)
class ConditionSpec:
    """One row of the table.

    Attributes:
        channels: channels of the condition's tensor `(B, channels, F, H, W)`.
        kind: `temporal` has a tensor for every frame; `spatial` has one (F = 1) for all frames.
        size: height and width for a video of the released size, 256 x 256.
        scale: the same as a multiple of the latent size, for other video sizes.
        low, high: range of the values that the network was trained on, in `unit`.
        released: key prefixes of the convolutional stem and of its temporal Transformer layer in released files.
        guidance_key: its argument in the original network's forward.
        annotated: an annotator, usually a network, draws it from the frames alone: on a device, and during training
            inside the training step.
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
    """The (height, width) of a condition for a video of `size`: `scale` times the latent's.

    `scale` is the checkpoint's, `ExtractionConfig.condition_scale`; None: the table's, 8 for motion, 12 for the others.
    """
    return tuple((scale or CONDITIONS[name].scale) * side // 8 for side in size)


def drawing_size(name: str, size: tuple[int, int]) -> tuple[int, int]:
    """The (height, width) at which a condition is drawn, and to which frames are scaled for it, for every checkpoint.

    This is the table's size, because annotators' thresholds and line widths suit it, and because motion keeps
    its single points: its map is as large as the video of `size`, and vectors are in that video's pixels.
    """
    return condition_size(name, size)


STRONG = 2.0
"""The strength above which a note is shown."""


def strength_note(name: str, strength: float) -> str:
    """Return a note on a strength that is far above that of the training, else an empty text."""
    if strength <= STRONG:
        return ""
    return f"The strength of '{name}' is {strength:g}. Networks are trained with 1: above {STRONG:g}, videos may break."


@dataclass(frozen=True)
class Schedule:
    """How strongly and when a condition or a style is present.

    Attributes:
        strength: factor on the embedding; 0 is exactly the same as absent.
        start, end: it is present from `start` to before `end`, fractions of the noise schedule; with an end of 1, to
            the end.
    """

    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def check(self, name: str) -> None:
        """Raise `UserError`, which names the condition, if a value is not a number or out of its range."""
        for key, value in vars(self).items():
            check_type(f"The {key} of condition '{name}'", value, (Real, Tensor), "a number")
        if not 0.0 <= self.start <= self.end <= 1.0:
            raise UserError(
                f"Condition '{name}' runs from {self.start} to {self.end}. Expected 0 <= start <= end <= 1."
            )
        if not math.isfinite(self.strength):
            raise UserError(f"Condition '{name}' has strength {self.strength}. Expected a finite number.")

    def active(self, progress: float) -> bool:
        """Whether it is present at `progress`, a fraction of the sampling in [0, 1]."""
        return self.strength != 0.0 and self.start <= progress and (progress < self.end or self.end == 1.0)


@dataclass(frozen=True)
class Condition:
    """A condition of a video: a row of the table with its tensor, strength and schedule.

    Attributes:
        name: a key of `CONDITIONS`.
        tensor: `(B, channels, F, H, W)`; F = 1 for spatial conditions, else the number of frames.
        strength, start, end: see `Schedule`.
        video: (height, width) of the video that it was extracted for; motion vectors are in its pixels. None: the video
            that is composed.

    Raises:
        UserError: an unknown name, a wrong type, a wrong number of channels, an empty tensor, or values that are not
            finite.
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
        spec = CONDITIONS.get(self.name) if isinstance(self.name, str) else None
        if spec is None:
            raise UserError(f"Unknown condition {shown(self.name)}. Expected one of {', '.join(CONDITIONS)}.")
        check_type(f"Condition '{self.name}'", self.tensor, Tensor, "a torch tensor, such as extract() returns")
        has = f"Condition '{self.name}' has shape {tuple(self.tensor.shape)}"
        if self.tensor.ndim != 5 or self.tensor.shape[1] != spec.channels:
            raise UserError(f"{has}. Expected (batch, {spec.channels}, frames, height, width).")
        if self.tensor.numel() == 0:
            raise UserError(f"{has}, which is empty. Expected at least 1 along each dimension.")
        if not torch.isfinite(self.tensor).all():
            raise UserError(f"Condition '{self.name}' contains values that are not finite. Check its source.")
        self.schedule.check(self.name)
