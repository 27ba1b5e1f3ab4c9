"""Conditions of a checkpoint's kind out of a source video: the table of extractors, and the sizes they work at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vc_core.conditions import CONDITIONS
from vc_core.config import ExtractionConfig
from vc_core.errors import UserError
from vc_core.extract.mask import masked_video, read_mask
from vc_core.extract.motion import extract_motion
from vc_core.extract.sketch import edges
from vc_core.video import FramePlan, read_frames


@dataclass(frozen=True)
class Source:
    """A video file and the frame plan that all of its conditions are made with.

    Attributes:
        size: (height, width) of the video to be composed.
        mask: image or video that tells what to paint (white), for the mask condition.
    """

    path: Path
    plan: FramePlan
    size: tuple[int, int]
    extraction: ExtractionConfig
    mask: Path | None = None

    def at(self, name: str) -> tuple[int, int]:
        """(height, width) that a condition is made at: a multiple of the latent size, see the condition table."""
        return condition_size(name, self.size)

    def frames(self, name: str) -> Tensor:
        return read_frames(self.path, self.plan, self.at(name))


def condition_size(name: str, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a condition for a video of `size`: 8 or 12 times the latent's."""
    return tuple(CONDITIONS[name].scale * side // 8 for side in size)


def _motion(source: Source) -> Tensor:
    return extract_motion(source.path, source.plan, source.extraction.motion_layout, source.at("motion"))


def _mask(source: Source) -> Tensor:
    if source.mask is None:
        raise UserError("The condition 'mask' needs a mask file: give an image or a video, white where to paint.")
    keep = read_mask(source.mask, source.plan, size=source.at("mask"))
    return masked_video(source.frames("mask"), keep)


def _depth(source: Source) -> Tensor:
    raise UserError("The condition 'depth' cannot be extracted: no depth model is set up; leave it out.")


EXTRACTORS: dict[str, Callable[[Source], Tensor]] = {
    "motion": _motion,
    "depth": _depth,
    "sketch": lambda source: edges(source.frames("sketch")),
    "mask": _mask,
    "single_image": lambda source: source.frames("single_image")[:, :, :1],
    "single_sketch": lambda source: edges(source.frames("single_sketch")[:, :, :1]),
}


def extract(name: str, source: Source) -> Tensor:
    """One condition's tensor `(1, C, F or 1, H, W)`. Raises `UserError` for an unknown name or an unreadable file."""
    if name not in EXTRACTORS:
        raise UserError(f"Unknown condition '{name}': expected some of {', '.join(EXTRACTORS)}.")
    return EXTRACTORS[name](source)
