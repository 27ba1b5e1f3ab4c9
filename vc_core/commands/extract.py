"""`./vc extract`: a condition of a video or an image into a file, with how it was made, and something to look at."""

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checkpoint.files import save_tensors
from ..conditions import ANNOTATED, CONDITIONS
from ..config import Config, as_mapping
from ..disk import check_place
from ..errors import UserError
from ..extract.motion.from_video import block_vectors
from ..extract.pictures import picture_of
from ..extract.sources import Extracted, Source
from ..progress import Progress
from ..video import is_image, probe, read_frames, read_image
from ..video.writing import check_format, write_contact_sheet, write_video
from .checks import check_inputs, check_settings, check_video_place
from .conditions import frame_plan, make_conditions, options_of
from .record import file_hash
from .settings import SERVES, Settings, as_option

KINDS = (*CONDITIONS, "style")
KEY = "videocomposer"
"""Of the metadata: how the file's tensors were made, as JSON."""

LEGIBLE = 256
"""Pixels of a side that a preview has at least, so that arrows and thin lines can be made out."""

_SEQUENCES = tuple(name for name, spec in CONDITIONS.items() if spec.kind == "temporal")

OPTIONS: dict[str, tuple[str, ...]] = {
    "frames": _SEQUENCES,
    "size": tuple(CONDITIONS),
    "start": KINDS,
    "rate": KINDS,
    **SERVES,
    "sketch_lines": ("single_sketch",),
    "models": ANNOTATED,
    "device": ANNOTATED,
}
"""Settings of `./vc compose` that are options here too -> the kinds that are made in another way by them."""

COLUMNS = ("frame", "dst_x", "dst_y", "dx", "dy")
"""Of the block vectors: which frame of the plan, the block's centre, and how far it moved, in pixels of the source."""

SHORT = {
    "motion_mode": "--mode",
    "depth_near": "--near",
    "depth_scale": "--scale",
    "mask_white": "--white",
    "mask_draw": "--draw",
    "mask_seed": "--seed",
    "sketch_lines": "--lines",
}
"""Options' second names: where the kind is said, it need not be in the name."""

# What a still picture can give -> the setting of `./vc compose` that takes it for that.
_STILLS = {"single_image": "image", "single_sketch": "sketch", "style": "style"}
_OF_VIDEOS = ("start", "rate")
_OF_STILLS = ("sketch_lines",)


@dataclass(frozen=True)
class Request:
    """What is to be extracted, checked as far as that goes without reading the file.

    Attributes:
        settings: with the file as the setting that takes it; `frames` and `size` filled in.
        checkpoint: whose kind of condition it is; None for the released one.
        vectors: also the raw blocks of the released motion path, for `motion`.
    """

    kind: str
    file: Path
    settings: Settings
    config: Config
    checkpoint: Path | None = None
    vectors: bool = False


@dataclass(frozen=True)
class Extraction:
    """What was extracted.

    Attributes:
        extracted: the tensor `(1, C, F, H, W)`, and how it was made.
        source: the video that it was made from; None for a still picture.
        vectors: the raw blocks of the released motion path, rows of `COLUMNS`; None where they were not asked for.
        settings: what was asked for, in values that JSON holds.
    """

    kind: str
    extracted: Extracted
    source: Source | None
    vectors: Tensor | None
    settings: Mapping[str, Any]


# --- What is asked for ----------------------------------------------------------------------------------------------


def request_of(options: Mapping[str, Any]) -> Request:
    """What options of `./vc extract` ask for; of `OPTIONS` those that were given.

    Raises:
        UserError: options that do nothing for the kind or contradict each other, an image for a kind that needs a
            video, inputs that are missing, or outputs that cannot be written.
    """
    kind, file, checkpoint = options["kind"], options["file"], options["checkpoint"]
    given = {name: value for name, value in options.items() if name in OPTIONS}
    for name in [*given, *(["vectors"] if options["vectors"] else [])]:
        if kind not in (kinds := OPTIONS.get(name, ("motion",))):
            raise UserError(
                f"{as_option(name)} does nothing for {kind}: leave it out, it goes with {', '.join(kinds)}."
            )
    still = is_image(file)
    if still and kind not in _STILLS:
        raise UserError(f"{file} is an image, and {kind} comes from a video: give one.")
    for name in (name for name in (_OF_VIDEOS if still else _OF_STILLS) if name in given):
        here, there = ("an image", "a video") if still else ("a video", "an image")
        raise UserError(f"{as_option(name)} goes with {there}, and {file} is {here}: leave it out.")
    if options["vectors"] and (given.get("motion_mode", "released") != "released" or "nominal_height" in given):
        name = "nominal_height" if "nominal_height" in given else "motion_mode"
        raise UserError(
            f"{as_option(name)} {given[name]} does not go with --vectors, which are the released path's at the "
            "source's own size: leave one of them out."
        )
    # The first frame of a video is what an image tower sees of it: taken as the single image is.
    taken = {_STILLS[kind]: file} if still else {"video": file, "use": "single_image" if kind == "style" else kind}
    settings = Settings().with_options({**given, **taken})
    check_settings(settings, _label)
    check_inputs(settings, _label)
    if settings.depth_maps or (settings.sketch and settings.lines != "none"):
        for name in ("models", "device"):
            if name in given:
                raise UserError(f"{as_option(name)} goes with networks, and none is run here: leave it out.")
    _check_outputs(settings, checkpoint, options["out"], options["preview"])
    config = _config(checkpoint)
    settings = dataclasses.replace(
        settings, frames=settings.frames or config.frames, size=settings.size or (config.height, config.width)
    )
    return Request(kind, file, settings, config, checkpoint, options["vectors"])


def _label(name: str) -> str:
    return "FILE" if name in ("video", *_STILLS.values()) else as_option(name)


def _check_outputs(settings: Settings, checkpoint: Path | None, out: Path, shown: Path | None) -> None:
    """Refuses, before anything is extracted, other endings, folders, what is read, and one name for both."""
    if out.suffix.lower() != ".safetensors":
        raise UserError(f"{out} cannot be written: expected a name that ends in .safetensors.")
    inputs = [path for paths in settings.inputs().values() for path in paths]
    read = {os.path.realpath(path) for path in (*inputs, *filter(None, [checkpoint]))}
    for path in filter(None, (out, shown)):
        if read & {os.path.realpath(path), os.path.realpath(path.parent)} and path.exists():
            raise UserError(f"{path} would overwrite what is read: give another name.")
    check_place(out)
    if shown is not None and shown.suffix.lower() == ".png":
        check_place(shown)
    elif shown is not None:
        check_video_place(shown, check_format(shown))


def _config(checkpoint: Path | None) -> Config:
    from ..checkpoint.reading import BUNDLED, read_checkpoint

    if checkpoint is None:
        return Config()
    config = read_checkpoint(BUNDLED if str(checkpoint) == "bundled" else checkpoint).config
    if config is None:
        raise UserError(f"{checkpoint} holds no network whose kind of conditions could be made: give one that does.")
    return config


# --- Extracting -----------------------------------------------------------------------------------------------------


def extract_file(request: Request, progress: Progress | None = None) -> Extraction:
    """Extracts what was asked for.

    A style image, or a video's first frame, is what the checkpoint's image tower sees of it, before its norm.

    Raises:
        UserError: a file that is unreadable or too short, or a network whose files are missing.
    """
    settings, kind, config, rows = request.settings, request.kind, request.config, None
    plan = frame_plan(settings, settings.frames)
    if kind == "style":
        from ..encoders.clip import fitted

        image = read_image(request.file) if plan is None else read_frames(request.file, plan)[:, :, 0]
        extracted = Extracted(fitted(image, (config.towers.image_size,) * 2)[:, :, None])
    else:
        extracted = make_conditions(settings, plan, config, progress)[kind]
    told = {"kind": kind, "file": str(request.file), "sha256": file_hash(request.file)}
    # The settings that do something for the kind.
    values = {"size": settings.size, **vars(options_of(settings))}
    asked = (name for name in values if hasattr(settings, name) and kind in OPTIONS.get(name, KINDS))
    told |= {name: values[name] for name in asked}
    told["extraction"] = as_mapping(config.extraction)
    if plan is not None:
        told |= {"start": plan.start, "rate": float(plan.rate), "frames": plan.frames}
    told["checkpoint"] = request.checkpoint
    if request.vectors:
        found = block_vectors(request.file, plan)
        rows = torch.from_numpy(np.stack([found.rows[name].astype(np.float32) for name in COLUMNS], axis=1))
        told["vectors"] = {
            **{"layout": "released", "columns": [*COLUMNS], "rows": len(rows), "height": found.height},
            **{"width": found.width, "fps": float(plan.rate), "source_fps": float(probe(request.file).rate)},
        }
    source = plan and Source(request.file, plan, settings.size, config.extraction)
    told = json.loads(json.dumps({**told, "how": dict(extracted.how)}, default=str))
    return Extraction(kind, extracted, source, rows, told)


# --- What is written and told ---------------------------------------------------------------------------------------


def save_extraction(extraction: Extraction, out: Path) -> Path:
    """Writes `condition`, and `vectors` where there are any, into a `.safetensors` with the settings as metadata."""
    tensors = {"condition": extraction.extracted.tensor.float()}
    if extraction.vectors is not None:
        tensors["vectors"] = extraction.vectors
    save_tensors(out, tensors, {KEY: json.dumps(extraction.settings)})
    return out


def preview(extraction: Extraction, path: Path) -> Path:
    """Something to look at: a `.png` is a contact sheet, any other name a video. Motion is arrows over the frames."""
    kind, picture, source = extraction.kind, extraction.extracted.tensor, extraction.source
    if kind in CONDITIONS:
        picture = picture_of(kind, picture, source)
    if path.suffix.lower() == ".png":
        return write_contact_sheet(path, [(kind, picture)], cell=LEGIBLE)
    return write_video(path, picture, source.plan.rate if source else 1, -(-LEGIBLE // min(picture.shape[-2:])))


def summary(extraction: Extraction) -> dict[str, Any]:
    """What was extracted, in values that JSON holds: the settings, the shape and the range of the values."""
    tensor = extraction.extracted.tensor.float()
    values = {"least": tensor.min().item(), "mean": tensor.mean().item(), "most": tensor.max().item()}
    return {**extraction.settings, "shape": list(tensor.shape), **values, "note": extraction.extracted.note}
