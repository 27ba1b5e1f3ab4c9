"""The entry point of extraction: a condition of the table from a clip or an image, as a checkpoint expects it."""

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
from ..errors import UserError, check_type
from ..progress import Progress
from ..video import FramePlan, read_frames, resize_crop
from .annotators import Folders
from .refit import refit


@dataclass(frozen=True)
class Source:
    """The clip that conditions are extracted from, with one frame plan for all, and the video that they are for.

    Attributes:
        clip: a path or another source that `vc_core.video` reads, or frames, `(B, 1 or 3, F, H, W)` in [0, 1].
        plan: which frames are used; may be None if `clip` is frames and no motion is extracted.
        size: (height, width) of the video to compose.
        extraction: how the checkpoint was trained.
    """

    clip: Any
    plan: FramePlan | None
    size: tuple[int, int]
    extraction: ExtractionConfig

    def at(self, name: str) -> tuple[int, int]:
        """The (height, width) at which the checkpoint expects a condition."""
        return condition_size(name, self.size, self.extraction.condition_scale)

    def frames(self, name: str) -> Tensor:
        """The frames (B, 3, F, H, W) for a condition, at `drawing_size`; only the first for a spatial condition."""
        size, still = drawing_size(name, self.size), CONDITIONS[name].kind == "spatial"
        if isinstance(self.clip, Tensor):
            frames = self.clip[:, :3, :1] if still else self.clip[:, :3]
            return resize_crop(frames, size).expand(-1, 3, -1, -1, -1)
        check_type("plan", self.plan, FramePlan, "the frame plan of the clip, such as plan_frames(probe(clip))")
        return read_frames(self.clip, replace(self.plan, frames=1) if still else self.plan, size)

    def fitted(self, name: str, tensor: Tensor) -> Tensor:
        """Resize a tensor from `drawing_size` to the size that the checkpoint expects."""
        return refit(name, tensor, self.size, tensor.shape[2], self.extraction, self.size)


@dataclass(frozen=True)
class Options:
    """How conditions are extracted. Settings of the command line with the same names mean the same.

    Attributes:
        mask: where to paint: an image, a video, a folder of images, or a mask `(1, 1 or 3, F or 1, H, W)`.
        mask_white: what white means, one of `vc_core.extract.mask.POLARITIES`.
        mask_draw: instead of a file, a kind of `random_mask` to draw, or `any`; uses `mask_seed`.
        motion_mode: `released` or `stream`, see `vc_core.extract.motion.from_video`.
        nominal_height: the clip is scaled to this height before its motion is extracted (None: not scaled).
        sketch_method: one of `vc_core.extract.sketch.methods.METHODS`.
        drawing: the frames are drawings with `bright` or `dark` lines, and are used as sketches.
        depth_model: file or folder of a depth network; None: the released one, searched in `models`.
        depth_maps: depth maps instead of a network: a video, an image, a folder of images, or a tensor.
        depth_near: whether `bright` or `dark` is near in these maps.
        depth_scale: see `depth_from_maps`; None: by percentiles.
        models: folders that are searched for annotators' files.
        device: the device of the annotators' networks.
        at_once: frames per forward of these networks.
        loaded: a cache that keeps the networks between extractions; None: they are loaded each time.
    """

    mask: Path | Tensor | None = None
    mask_white: str = "paint"
    mask_draw: str | None = None
    mask_seed: int = 0
    motion_mode: str = "released"
    nominal_height: int | None = None
    sketch_method: str = "auto"
    drawing: str | None = None
    depth_model: Path | None = None
    depth_maps: Path | Tensor | None = None
    depth_near: str = "bright"
    depth_scale: float | None = None
    models: Folders = None
    device: str | torch.device = "cpu"
    at_once: int = 4
    loaded: dict[str, Any] | None = None

    def network(self, name: str, load: Callable[[], Any]) -> Any:
        """The network of this name, from the cache, or loaded."""
        cache = {} if self.loaded is None else self.loaded
        if name not in cache:
            cache[name] = load()
        return cache[name]


@dataclass(frozen=True)
class Extracted:
    """A condition's tensor `(B, C, F or 1, H, W)` and how it was extracted.

    Attributes:
        how: JSON values, for example `{"method": "edges"}`.
        note: a sentence for users about what was decided for them; else empty.
    """

    tensor: Tensor
    how: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


def _motion(source: Source, options: Options, progress: Progress | None) -> Extracted:
    from .motion.from_video import read_motion

    check_type("plan", source.plan, FramePlan, "a FramePlan, as plan_frames() returns it: motion requires it")
    layout, unit = source.extraction.motion_layout, source.extraction.motion_unit
    size = drawing_size("motion", source.size)
    mode, height = options.motion_mode, options.nominal_height
    motion = read_motion(source.clip, source.plan, size, layout, mode, height, progress)
    how = {"layout": layout, "unit": unit, "mode": mode, "reencoded": motion.reencoded, "why": motion.why}
    note = motion.note if mode == "stream" or motion.repeated else ""
    return Extracted(source.fitted("motion", motion.field), how, note)


def _mask(source: Source, options: Options, _: Progress | None) -> Extracted:
    from .mask import Mask, load_mask, mask_of, masked_video, random_mask

    frames = source.frames("mask")
    count, size = frames.shape[2], tuple(frames.shape[-2:])
    how: dict[str, Any] = {"white": options.mask_white}
    if options.mask_draw is not None:
        kind = None if options.mask_draw == "any" else options.mask_draw
        mask = Mask(random_mask(count, size, torch.Generator().manual_seed(options.mask_seed), kind))
        how = {"drawn": options.mask_draw, "seed": options.mask_seed}
    elif isinstance(options.mask, Tensor):
        mask = mask_of(options.mask, options.mask_white, count, size)
    elif options.mask is not None:
        mask = load_mask(options.mask, source.plan, options.mask_white, size)
    else:
        raise UserError("The condition 'mask' requires a mask. Pass an image or a video, white where to paint.")
    return Extracted(masked_video(frames, mask.keep, source.at("mask")), how, mask.note)


def _depth(source: Source, options: Options, progress: Progress | None) -> Extracted:
    from .depth.networks import depth, load_depth_model

    if options.depth_maps is not None:
        return _depth_of_maps(source, options)
    model = options.network("depth", partial(load_depth_model, options.depth_model, options.device, options.models))
    tensor = depth(source.frames("depth"), model, options.at_once, progress)
    return Extracted(source.fitted("depth", tensor), {"model": model.which}, f"depth: extracted with {model.which}.")


def _depth_of_maps(source: Source, options: Options) -> Extracted:
    from .depth.maps import PERCENTILES, USUAL, depth_from_maps, mapped_levels, read_depth_maps

    maps, near, scale = options.depth_maps, options.depth_near, options.depth_scale
    how = {"maps": "a tensor" if isinstance(maps, Tensor) else str(maps), "near": near, "scale": scale}
    if not isinstance(maps, Tensor):
        maps = read_depth_maps(maps, source.plan, drawing_size("depth", source.size))
    tensor = source.fitted("depth", depth_from_maps(maps, near, scale))
    if scale is not None:
        return Extracted(tensor, how)
    far, close = mapped_levels(maps, near)[0]
    how |= {"percentiles": [*PERCENTILES], "levels": [far, close], "became": [*USUAL]}
    note = (
        f"depth: the maps' levels {far:.3g} and {close:.3g} of 0 to 1 (percentiles {PERCENTILES[0]:g} and "
        f"{PERCENTILES[1]:g}) were mapped to the depths {USUAL[0]:g} and {USUAL[1]:g}. Set --depth-scale to multiply "
        "the levels by it instead."
    )
    return Extracted(tensor, how, note)


def _sketch(name: str, source: Source, options: Options, progress: Progress | None) -> Extracted:
    from .annotators import per_frame
    from .sketch.methods import as_sketch, as_trained, load_sketcher

    frames = source.frames(name)
    if options.drawing is not None:
        tensor = source.fitted(name, as_sketch(frames, options.drawing))
        return Extracted(tensor, {"method": "as it is", "lines": options.drawing})
    method = as_trained(options.sketch_method, source.extraction)
    sketcher = options.network("sketch", partial(load_sketcher, method, options.device, options.models))
    tensor, which = per_frame(sketcher.draw, frames, "sketch", options.at_once, progress), sketcher.which
    missing = "" if which == "pidinet" else " (PiDiNet's files were not found)"
    note = "" if method == which else f"{name}: extracted with {which}{missing}."
    return Extracted(source.fitted(name, tensor), {"method": which}, note)


def _single_image(source: Source, _: Options, __: Progress | None) -> Extracted:
    return Extracted(source.fitted("single_image", source.frames("single_image")))


EXTRACTORS: dict[str, Callable[[Source, Options, Progress | None], Extracted]] = {
    "motion": _motion,
    "depth": _depth,
    "sketch": partial(_sketch, "sketch"),
    "mask": _mask,
    "single_image": _single_image,
    "single_sketch": partial(_sketch, "single_sketch"),
}
"""The extractor of each row of the condition table."""

_DEFAULTS = Options()


def extract_condition(
    name: str, source: Source, options: Options = _DEFAULTS, progress: Progress | None = None
) -> Extracted:
    """Extract one condition from a source.

    Raises:
        UserError: an unknown name, an unreadable file, or a network with missing files.
    """
    if name not in EXTRACTORS:
        raise UserError(f"Unknown condition '{name}'. Expected one of {', '.join(EXTRACTORS)}.")
    return EXTRACTORS[name](source, options, progress)


def extract(name: str, source: Source, options: Options = _DEFAULTS, progress: Progress | None = None) -> Tensor:
    """As `extract_condition`, but return only the tensor `(B, C, F or 1, H, W)`."""
    return extract_condition(name, source, options, progress).tensor
