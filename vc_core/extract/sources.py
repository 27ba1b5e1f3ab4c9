"""Conditions of a checkpoint's kind out of a source video: the table of extractors, and the sizes they work at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..conditions import CONDITIONS, condition_size, drawing_size
from ..config import ExtractionConfig
from ..errors import UserError
from ..progress import Progress
from ..video import FramePlan, read_frames
from .mask import Mask, load_mask, masked_video, random_mask
from .motion import read_motion
from .networks import Folders
from .refit import refit
from .sketch import sketch


@dataclass(frozen=True)
class Source:
    """A file, for a video with the frame plan that all of its conditions are made with; and how they are made.

    Attributes:
        plan: None for a still picture.
        size: (height, width) of the video to be composed.
        extraction: what the checkpoint was trained with; a sketch of the method `auto` follows it.
        mask: image, video or folder of images that tells what to paint, for the mask condition.
        mask_white: what its white means, one of `vc_core.extract.mask.POLARITIES`.
        mask_draw: instead of a file, a kind of `random_mask` to draw, or `any`; with `mask_seed`.
        motion_mode: `released` or `stream`, see `vc_core.extract.motion`.
        nominal_height: the source is scaled to this height before its motion is taken (None: as it is).
        sketch_method: `auto`, `pidinet` or `edges`. `auto` is edges for a checkpoint that was trained on them, else
            PiDiNet where its files are found.
        depth_model: file or folder of a depth network; None for the released one, found in `models`.
        depth_maps: depth maps from elsewhere instead of a network: a video, image or folder of images.
        depth_near: what is near in these maps, `bright` or `dark`.
        depth_scale: see `depth_from_maps`; None: by percentiles.
        models: folders in which annotators' files are looked for.
        device: where the annotators' networks run.
    """

    path: Path
    plan: FramePlan | None
    size: tuple[int, int]
    extraction: ExtractionConfig
    mask: Path | None = None
    mask_white: str = "paint"
    mask_draw: str | None = None
    mask_seed: int = 0
    motion_mode: str = "released"
    nominal_height: int | None = None
    sketch_method: str = "auto"
    depth_model: Path | None = None
    depth_maps: Path | None = None
    depth_near: str = "bright"
    depth_scale: float | None = None
    models: Folders = None
    device: str = "cpu"

    def at(self, name: str) -> tuple[int, int]:
        """(height, width) that the checkpoint takes a condition at."""
        return condition_size(name, self.size, self.extraction.condition_scale)

    def frames(self, name: str) -> Tensor:
        """The frames (1, 3, F, H, W) that a condition is made of, at `drawing_size`: the plan's, of which one that is
        spatial takes the first alone."""
        plan = self.plan if CONDITIONS[name].kind == "temporal" else replace(self.plan, frames=1)
        return read_frames(self.path, plan, drawing_size(name, self.size))

    def fitted(self, name: str, tensor: Tensor) -> Tensor:
        """What was drawn at `drawing_size`, as the checkpoint takes it."""
        return refit(name, tensor, self.size, tensor.shape[2], self.extraction, self.size)


@dataclass(frozen=True)
class Extracted:
    """A condition's tensor `(1, C, F or 1, H, W)` and how it was made.

    Attributes:
        how: in values that JSON holds, for instance `{"method": "edges"}`.
        note: one sentence for users where something was decided for them, else empty.
    """

    tensor: Tensor
    how: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


def _motion(source: Source, progress: Progress | None) -> Extracted:
    layout, unit = source.extraction.motion_layout, source.extraction.motion_unit
    size = drawing_size("motion", source.size)
    motion = read_motion(
        source.path, source.plan, size, layout, unit, source.motion_mode, source.nominal_height, progress
    )
    how = {"layout": layout, "unit": unit, "mode": motion.mode, "reencoded": motion.reencoded, "why": motion.why}
    note = motion.note if motion.mode == "stream" or motion.repeated else ""
    return Extracted(source.fitted("motion", motion.field), how, note)


def _mask(source: Source, progress: Progress | None) -> Extracted:
    size = drawing_size("mask", source.size)
    if source.mask_draw is not None:
        kind = None if source.mask_draw == "any" else source.mask_draw
        generator = torch.Generator().manual_seed(source.mask_seed)
        mask = Mask(random_mask(source.plan.frames, size, generator, kind))
        how = {"drawn": source.mask_draw, "seed": source.mask_seed}
    elif source.mask is not None:
        mask = load_mask(source.mask, source.plan, source.mask_white, size)
        how = {"white": source.mask_white}
    else:
        raise UserError("The condition 'mask' needs a mask file: give an image or a video, white where to paint.")
    return Extracted(masked_video(source.frames("mask"), mask.keep, source.at("mask")), how, mask.note)


def _depth(source: Source, progress: Progress | None) -> Extracted:
    from .depth import depth

    if source.depth_maps is not None:
        return _depth_of_maps(source)
    tensor, which = depth(
        source.frames("depth"), source.depth_model, source.models, device=source.device, progress=progress
    )
    return Extracted(source.fitted("depth", tensor), {"model": which}, f"depth: by {which}.")


def _depth_of_maps(source: Source) -> Extracted:
    from .depth_maps import PERCENTILES, USUAL, depth_from_maps, mapped_levels, read_depth_maps

    maps = read_depth_maps(source.depth_maps, source.plan, drawing_size("depth", source.size))
    how = {"maps": str(source.depth_maps), "near": source.depth_near, "scale": source.depth_scale}
    tensor = source.fitted("depth", depth_from_maps(maps, source.depth_near, source.depth_scale))
    if source.depth_scale is not None:
        return Extracted(tensor, how)
    far, near = mapped_levels(maps, source.depth_near)[0]
    how |= {"percentiles": [*PERCENTILES], "levels": [far, near], "became": [*USUAL]}
    note = (
        f"depth: of the maps' levels, 0 to 1, {far:.3g} became the depth {USUAL[0]:g} and {near:.3g} became "
        f"{USUAL[1]:g} (percentiles {PERCENTILES[0]:g} and {PERCENTILES[1]:g}); --depth-scale takes them as they are."
    )
    return Extracted(tensor, how, note)


def sketch_of(name: str, frames: Tensor, source: Source, progress: Progress | None = None) -> Extracted:
    """The sketch `(1, 1, F, h, w)` of frames `(1, 3, F, H, W)` at `drawing_size`, by the source's method; `name` is the
    condition."""
    as_trained = source.extraction.sketch == "edges" and source.sketch_method == "auto"
    method = "edges" if as_trained else source.sketch_method
    tensor, which = sketch(frames, method, source.models, device=source.device, progress=progress)
    note = "" if method == which else f"{name}: by {which}{'' if which == 'pidinet' else ', PiDiNet is not there'}."
    return Extracted(source.fitted(name, tensor), {"method": which}, note)


def _sketch(name: str, source: Source, progress: Progress | None) -> Extracted:
    return sketch_of(name, source.frames(name), source, progress)


def _single_image(source: Source, progress: Progress | None) -> Extracted:
    return Extracted(source.fitted("single_image", source.frames("single_image")))


EXTRACTORS: dict[str, Callable[[Source, Progress | None], Extracted]] = {
    "motion": _motion,
    "depth": _depth,
    "sketch": partial(_sketch, "sketch"),
    "mask": _mask,
    "single_image": _single_image,
    "single_sketch": partial(_sketch, "single_sketch"),
}


def extract_condition(name: str, source: Source, progress: Progress | None = None) -> Extracted:
    """One condition of a source, and how it was made.

    Raises:
        UserError: an unknown name, a file that is unreadable, or a network whose files are missing.
    """
    if name not in EXTRACTORS:
        raise UserError(f"Unknown condition '{name}': expected some of {', '.join(EXTRACTORS)}.")
    return EXTRACTORS[name](source, progress)


def extract(name: str, source: Source, progress: Progress | None = None) -> Tensor:
    """One condition's tensor `(1, C, F or 1, H, W)` alone, otherwise as `extract_condition`."""
    return extract_condition(name, source, progress).tensor
