"""`./vc extract`: a condition of a video or an image into a file, with how it was made, and something to look at."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checkpoint.files import save_tensors
from ..checkpoint.reading import BUNDLED as BUNDLED_FILE
from ..checkpoint.reading import read_checkpoint
from ..conditions import ANNOTATED, CONDITIONS
from ..config import Config, as_mapping
from ..disk import check_place
from ..encoders.clip import fitted
from ..errors import UserError
from ..extract.motion.from_video import block_vectors
from ..extract.pictures import picture_of
from ..extract.sources import Extracted, Source
from ..progress import Progress
from ..video import FramePlan, is_image, probe, read_frames, read_image
from ..video.writing import check_videos, write_contact_sheet, write_video
from .checks import check_inputs, check_settings
from .conditions import fill_in, make_conditions, options_of
from .record import KEY, file_hash
from .settings import BUNDLED, SERVES, Settings, as_option

KINDS = (*CONDITIONS, "style")

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


def run(
    kind: str,
    file: Path,
    out: Path,
    options: Mapping[str, Any],
    preview: Path | None = None,
    checkpoint: Path | None = None,
    vectors: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Writes `condition` `(1, C, F, H, W)` into a `.safetensors`, with how it was made as JSON in its metadata.

    A style image, or a video's first frame, is what the checkpoint's image tower sees of it, before its norm.

    Args:
        kind: one of `KINDS`.
        options: those of `OPTIONS` that were given, as texts.
        preview: also something to look at: a `.png` is a contact sheet, any other name a video.
        checkpoint: whose kind of condition it is; None for the released one.
        vectors: also writes `vectors`, the raw blocks of the released motion path, rows of `COLUMNS`.

    Returns:
        What was extracted, in values that JSON holds: the metadata, the shape and the range of the values.

    Raises:
        UserError: options that do nothing for the kind or contradict each other, an image for a kind that needs a
            video, a file that is missing, unreadable or too short, outputs that cannot be written, or a network whose
            files are missing.
    """
    settings = _settings_of(kind, file, options, vectors)
    _check_outputs(settings, checkpoint, out, preview)
    config = _config(checkpoint)
    settings, plan = fill_in(settings, config)
    if kind == "style":
        image = read_image(file) if plan is None else read_frames(file, plan)[:, :, 0]
        made = Extracted(fitted(image, (config.towers.image_size,) * 2)[:, :, None])
    else:
        made = make_conditions(settings, plan, config, progress)[kind]
    told = {"kind": kind, "file": file, "sha256": file_hash(file)}
    # The settings that do something for the kind.
    values = {"size": settings.size, **vars(options_of(settings))}
    asked = (name for name in values if hasattr(settings, name) and kind in OPTIONS.get(name, KINDS))
    told |= {name: values[name] for name in asked}
    told["extraction"] = as_mapping(config.extraction)
    if plan is not None:
        told |= {"start": plan.start, "rate": float(plan.rate), "frames": plan.frames}
    tensors, told["checkpoint"] = {"condition": made.tensor.float()}, checkpoint
    if vectors:
        tensors["vectors"], told["vectors"] = _raw_blocks(file, plan)
    told = json.loads(json.dumps({**told, "how": dict(made.how)}, default=str))
    save_tensors(out, tensors, {KEY: json.dumps(told)})
    if preview is not None:
        source = plan and Source(file, plan, settings.size, config.extraction)
        _write_preview(preview, kind, made.tensor, source)
    least, mean, most = (getattr(tensors["condition"], name)().item() for name in ("min", "mean", "max"))
    return {**told, "shape": [*made.tensor.shape], "least": least, "mean": mean, "most": most, "note": made.note}


def _settings_of(kind: str, file: Path, options: Mapping[str, Any], vectors: bool) -> Settings:
    """What options ask for, with the file as the setting that takes it; checked as far as that goes without reading."""
    for name in [*options, *(["vectors"] if vectors else [])]:
        if kind not in (kinds := OPTIONS.get(name, ("motion",))):
            raise UserError(
                f"{as_option(name)} does nothing for {kind}: leave it out, it goes with {', '.join(kinds)}."
            )
    still = is_image(file)
    if still and kind not in _STILLS:
        raise UserError(f"{file} is an image, and {kind} comes from a video: give one.")
    here, there = ("an image", "a video") if still else ("a video", "an image")
    for name in ("start", "rate") if still else ("sketch_lines",):
        if name in options:
            raise UserError(f"{as_option(name)} goes with {there}, and {file} is {here}: leave it out.")
    if vectors and (options.get("motion_mode", "released") != "released" or "nominal_height" in options):
        name = "nominal_height" if "nominal_height" in options else "motion_mode"
        raise UserError(
            f"{as_option(name)} {options[name]} does not go with --vectors, which are the released path's at the "
            "source's own size: leave one of them out."
        )
    # The first frame of a video is what an image tower sees of it: taken as the single image is.
    taken = {_STILLS[kind]: file} if still else {"video": file, "use": "single_image" if kind == "style" else kind}
    settings = Settings().with_options({**options, **taken})
    check_settings(settings, _label)
    check_inputs(settings, _label)
    if settings.depth_maps or (settings.sketch and settings.lines != "none"):
        for name in ("models", "device"):
            if name in options:
                raise UserError(f"{as_option(name)} goes with networks, and none is run here: leave it out.")
    return settings


def _label(name: str) -> str:
    return "FILE" if name in ("video", *_STILLS.values()) else as_option(name)


def _check_outputs(settings: Settings, checkpoint: Path | None, out: Path, preview: Path | None) -> None:
    """Refuses, before anything is extracted, other endings, folders, what is read, and one name for both."""
    if out.suffix.lower() != ".safetensors":
        raise UserError(f"{out} cannot be written: expected a name that ends in .safetensors.")
    inputs = [path for paths in settings.inputs().values() for path in paths]
    read = {os.path.realpath(path) for path in (*inputs, *filter(None, [checkpoint]))}
    for path in filter(None, (out, preview)):
        if read & {os.path.realpath(path), os.path.realpath(path.parent)} and path.exists():
            raise UserError(f"{path} would overwrite what is read: give another name.")
    check_place(out)
    if preview is not None:
        (check_place if preview.suffix.lower() == ".png" else check_videos)(preview)


def _config(checkpoint: Path | None) -> Config:
    if checkpoint is None:
        return Config()
    config = read_checkpoint(BUNDLED_FILE if str(checkpoint) == BUNDLED else checkpoint).config
    if config is None:
        raise UserError(f"{checkpoint} holds no network whose kind of conditions could be made: give one that does.")
    return config


def _raw_blocks(file: Path, plan: FramePlan) -> tuple[Tensor, dict[str, Any]]:
    """The blocks of the released motion path, rows of `COLUMNS`, and what is told of them."""
    found = block_vectors(file, plan)
    rows = torch.from_numpy(np.stack([found.rows[name].astype(np.float32) for name in COLUMNS], axis=1))
    told = {"layout": "released", "columns": [*COLUMNS], "rows": len(rows), "height": found.height}
    return rows, told | {"width": found.width, "fps": float(plan.rate), "source_fps": float(probe(file).rate)}


def _write_preview(path: Path, kind: str, picture: Tensor, source: Source | None) -> None:
    """A contact sheet or a video of a condition; motion is arrows over the frames of its source."""
    if kind in CONDITIONS:
        picture = picture_of(kind, picture, source)
    if path.suffix.lower() == ".png":
        write_contact_sheet(path, [(kind, picture)], cell=LEGIBLE)
    else:
        write_video(path, picture, source.plan.rate if source else 1, -(-LEGIBLE // min(picture.shape[-2:])))
