"""`./vc extract`: extract a condition from a video or an image into a file, with a record and a preview."""

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
from .setting_types import BUNDLED
from .settings import AFFECTS, Settings, as_option

KINDS = (*CONDITIONS, "style")

LEGIBLE = 256
"""Smallest side of a preview in pixels, so that arrows and thin lines are visible."""

_SEQUENCES = tuple(name for name, spec in CONDITIONS.items() if spec.kind == "temporal")

OPTIONS: dict[str, tuple[str, ...]] = {
    "frames": _SEQUENCES,
    "size": tuple(CONDITIONS),
    "start": KINDS,
    "rate": KINDS,
    **AFFECTS,
    "sketch_lines": ("single_sketch",),
    "models": ANNOTATED,
    "device": ANNOTATED,
}
"""Settings of `./vc compose` that are also options here -> the kinds that they change."""

COLUMNS = ("frame", "dst_x", "dst_y", "dx", "dy")
"""Columns of the block vectors: frame of the plan, centre of the block, displacement; in pixels of the source."""

SHORT = {
    "motion_mode": "--mode",
    "depth_near": "--near",
    "depth_scale": "--scale",
    "mask_white": "--white",
    "mask_draw": "--draw",
    "mask_seed": "--seed",
    "sketch_lines": "--lines",
}
"""Second names of options. They omit the kind, which is an argument of the command."""

# Kinds that an image can be used for -> the setting of `./vc compose` for that image.
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
    """Write `condition` `(1, C, F, H, W)` into a `.safetensors`, with a JSON record in its metadata.

    For style, the condition is the image, or the video's first frame, as the checkpoint's image tower sees it, before
    normalization.

    Args:
        kind: one of `KINDS`.
        options: the options of `OPTIONS` that the user set, as texts.
        preview: write a preview as well: for a `.png` a contact sheet, for any other name a video.
        checkpoint: extract the condition as this checkpoint expects it; None for the released one.
        vectors: also write `vectors`, the raw blocks of the released motion path, with the columns `COLUMNS`.

    Returns:
        A summary in JSON values: the metadata, the shape and the range of the values.

    Raises:
        UserError: an option does not apply to the kind or contradicts another one; the kind requires a video, but the
            file is an image; a file is missing, unreadable or too short; an output cannot be written; a network's files
            are missing.
    """
    settings = _settings_of(kind, file, options, vectors)
    _check_outputs(settings, checkpoint, out, preview)
    config = _config(checkpoint)
    settings, plan = fill_in(settings, config)
    if kind == "style":
        image = read_image(file) if plan is None else read_frames(file, plan)[:, :, 0]
        extracted = Extracted(fitted(image, (config.towers.image_size,) * 2)[:, :, None])
    else:
        extracted = make_conditions(settings, plan, config, progress)[kind]
    record = {"kind": kind, "file": file, "sha256": file_hash(file)}
    # Only the settings that apply to the kind.
    values = {"size": settings.size, **vars(options_of(settings))}
    relevant = (name for name in values if hasattr(settings, name) and kind in OPTIONS.get(name, KINDS))
    record |= {name: values[name] for name in relevant}
    record["extraction"] = as_mapping(config.extraction)
    if plan is not None:
        record |= {"start": plan.start, "rate": float(plan.rate), "frames": plan.frames}
    tensors, record["checkpoint"] = {"condition": extracted.tensor.float()}, checkpoint
    if vectors:
        tensors["vectors"], record["vectors"] = _raw_blocks(file, plan)
    record = json.loads(json.dumps({**record, "how": dict(extracted.how)}, default=str))
    save_tensors(out, tensors, {KEY: json.dumps(record)})
    if preview is not None:
        source = plan and Source(file, plan, settings.size, config.extraction)
        _write_preview(preview, kind, extracted.tensor, source)
    least, mean, most = (getattr(tensors["condition"], name)().item() for name in ("min", "mean", "max"))
    values = {"shape": [*extracted.tensor.shape], "least": least, "mean": mean, "most": most}
    return {**record, **values, "note": extracted.note}


def _settings_of(kind: str, file: Path, options: Mapping[str, Any], vectors: bool) -> Settings:
    """Turn the options and the file into settings. Check them as far as possible without reading the file."""
    for name in [*options, *(["vectors"] if vectors else [])]:
        if kind not in (kinds := OPTIONS.get(name, ("motion",))):
            raise UserError(f"{as_option(name)} has no effect on {kind}, only on {', '.join(kinds)}. Remove it.")
    still = is_image(file)
    if still and kind not in _STILLS:
        raise UserError(f"{kind} requires a video, but {file} is an image. Pass a video.")
    actual, expected = ("an image", "a video") if still else ("a video", "an image")
    for name in ("start", "rate") if still else ("sketch_lines",):
        if name in options:
            raise UserError(f"{as_option(name)} requires {expected}, but {file} is {actual}. Remove it.")
    if vectors and (options.get("motion_mode", "released") != "released" or "nominal_height" in options):
        name = "nominal_height" if "nominal_height" in options else "motion_mode"
        raise UserError(
            f"{as_option(name)} {options[name]} and --vectors exclude each other: the vectors are those of the "
            "released mode at the source's own size. Remove one of them."
        )
    # For style, the image tower sees a video's first frame, which is read in the same manner as a single image.
    inputs = {_STILLS[kind]: file} if still else {"video": file, "use": "single_image" if kind == "style" else kind}
    settings = Settings().with_options({**options, **inputs})
    check_settings(settings, _label)
    check_inputs(settings, _label)
    if settings.depth_maps or (settings.sketch and settings.lines != "none"):
        for name in ("models", "device"):
            if name in options:
                raise UserError(f"{as_option(name)} has no effect, because this run needs no network. Remove it.")
    return settings


def _label(name: str) -> str:
    return "FILE" if name in ("video", *_STILLS.values()) else as_option(name)


def _check_outputs(settings: Settings, checkpoint: Path | None, out: Path, preview: Path | None) -> None:
    """Refuse wrong file endings, folders, and outputs that would overwrite an input, before the extraction."""
    if out.suffix.lower() != ".safetensors":
        raise UserError(f"A condition is a .safetensors file, but its name is {out}. Choose a .safetensors name.")
    inputs = [path for paths in settings.inputs().values() for path in paths]
    read = {os.path.realpath(path) for path in (*inputs, *filter(None, [checkpoint]))}
    for path in filter(None, (out, preview)):
        if read & {os.path.realpath(path), os.path.realpath(path.parent)} and path.exists():
            raise UserError(f"The output {path} would overwrite an input. Choose another name.")
    check_place(out)
    if preview is not None:
        (check_place if preview.suffix.lower() == ".png" else check_videos)(preview)


def _config(checkpoint: Path | None) -> Config:
    if checkpoint is None:
        return Config()
    config = read_checkpoint(BUNDLED_FILE if str(checkpoint) == BUNDLED else checkpoint).config
    if config is None:
        raise UserError(
            f"{checkpoint} contains no VideoComposer network, so its condition format is unknown. Pass a full "
            "checkpoint."
        )
    return config


def _raw_blocks(file: Path, plan: FramePlan) -> tuple[Tensor, dict[str, Any]]:
    """Return the blocks of the released motion path, with the columns `COLUMNS`, and a description of them."""
    blocks = block_vectors(file, plan)
    rows = torch.from_numpy(np.stack([blocks.rows[name].astype(np.float32) for name in COLUMNS], axis=1))
    about = {"layout": "released", "columns": [*COLUMNS], "rows": len(rows), "height": blocks.height}
    return rows, about | {"width": blocks.width, "fps": float(plan.rate), "source_fps": float(probe(file).rate)}


def _write_preview(path: Path, kind: str, condition: Tensor, source: Source | None) -> None:
    """Write a contact sheet or a video of a condition; motion becomes arrows over the source's frames."""
    video = picture_of(kind, condition, source) if kind in CONDITIONS else condition
    if path.suffix.lower() == ".png":
        write_contact_sheet(path, [(kind, video)], cell=LEGIBLE)
    else:
        write_video(path, video, source.plan.rate if source else 1, -(-LEGIBLE // min(video.shape[-2:])))
