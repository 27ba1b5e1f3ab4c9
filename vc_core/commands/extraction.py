"""`./vc extract`: a condition of a video or an image into a file, with how it was made, and something to look at."""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..atomic import check_place
from ..conditions import CONDITIONS
from ..config import Config
from ..errors import UserError
from ..extract.sketch import as_sketch
from ..extract.sources import Extracted, Source, extract_condition, sketch_of
from ..files import save_tensors, sha256
from ..progress import Progress
from ..video import IMAGES, plan_frames, probe, read_frames, read_image, resize_crop
from ..video.writing import check_format, write_contact_sheet, write_video
from .values import SIZE

KINDS = (*CONDITIONS, "style")
KEY = "videocomposer"
"""Of the metadata: how the file's tensors were made, as JSON."""


@dataclass(frozen=True)
class Extraction:
    """What was extracted.

    Attributes:
        extracted: the tensor `(1, C, F, H, W)`, and how it was made.
        vectors: the raw blocks of the released motion path, rows of (frame, dst_x, dst_y, dx, dy) in source pixels;
            None where they were not asked for.
        settings: what was asked for, in values that JSON holds.
    """

    kind: str
    extracted: Extracted
    vectors: Tensor | None
    settings: Mapping[str, Any]


def source_of(options: Mapping[str, Any]) -> Source:
    """The source that options of `./vc extract` name: a video with its frame plan, or an image without one."""
    from ..checkpoint import BUNDLED, read_checkpoint
    from ..composer import choose_device

    config, checkpoint = Config(), options["checkpoint"]
    if checkpoint is not None:
        config = read_checkpoint(BUNDLED if str(checkpoint) == "bundled" else checkpoint).config
        if config is None:
            raise UserError(
                f"{checkpoint} holds no network whose kind of conditions could be made: give one that does."
            )
    size = read_size(options["size"]) if options["size"] else (config.height, config.width)
    plan = None
    if options["file"].suffix.lower() not in IMAGES:
        frames = config.frames if options["frames"] is None else options["frames"]
        plan = plan_frames(probe(options["file"]), frames, options["rate"], options["start"])
    return Source(
        options["file"],
        plan,
        size,
        config.extraction,
        options["mask"],
        options["mode"],
        options["nominal_height"],
        options["sketch_method"],
        options["depth_model"],
        options["depth_maps"],
        options["near"],
        options["models"],
        str(choose_device(options["device"])),
    )


def read_size(text: str) -> tuple[int, int]:
    """(height, width) of a text such as `256x256`. Raises `UserError`."""
    try:
        return SIZE.read(text)
    except ValueError as error:
        raise UserError(f"The size '{text}' cannot be read: expected {SIZE.expected}.") from error


def extract_file(
    kind: str, source: Source, vectors: bool = False, lines: str | None = None, progress: Progress | None = None
) -> Extraction:
    """Extracts one of `KINDS` from a source.

    A style image, or a video's first frame, is what ViT-H/14's image tower sees of it, before its norm. From a still
    picture come style, single image and single sketch; everything else needs a video, with its frame plan.

    Args:
        vectors: also the raw blocks of the released motion path, for `motion`.
        lines: the picture is a sketch already, whose lines are `bright` or `dark`; for `single_sketch`.

    Raises:
        UserError: a kind that is unknown, a file that is unreadable, or a network whose files are missing.
    """
    if kind not in KINDS:
        raise UserError(f"There is no condition '{kind}': expected one of {', '.join(KINDS)}.")
    if vectors and kind != "motion":
        raise UserError(f"Block vectors go with motion alone, not with {kind}: leave them out.")
    if lines is not None and (kind != "single_sketch" or source.plan is not None):
        raise UserError(f"The lines are {lines}, which goes with a single_sketch from an image alone: leave it out.")
    if source.plan is not None and kind == "style":
        first = dataclasses.replace(source.plan, frames=1)
        extracted = _style(read_frames(source.path, first)[:, :, 0], source, None)
    elif source.plan is not None:
        extracted = extract_condition(kind, source, progress)
    elif kind in _STILLS:
        extracted = _STILLS[kind](read_image(source.path), source, lines)
    else:
        raise UserError(f"{source.path} is an image, and {kind} comes from a video: give one.")
    rows = None
    if vectors:
        from ..extract.motion import block_vectors

        found = block_vectors(source.path, source.plan).rows
        columns = [found[name].astype(np.float32) for name in ("frame", "dst_x", "dst_y", "dx", "dy")]
        rows = torch.from_numpy(np.stack(columns, axis=1))
    settings = {"kind": kind, "file": str(source.path), "sha256": sha256(source.path), **_plain(source)}
    return Extraction(kind, extracted, rows, {**settings, "how": dict(extracted.how)})


def _style(image: Tensor, source: Source, lines: str | None) -> Extracted:
    from ..encoders.clip import fitted

    return Extracted(fitted(image, (224, 224))[:, :, None])


def _single_image(image: Tensor, source: Source, lines: str | None) -> Extracted:
    return Extracted(resize_crop(image, source.at("single_image"))[:, :, None])


def _single_sketch(image: Tensor, source: Source, lines: str | None) -> Extracted:
    if lines is not None:
        drawn = resize_crop(as_sketch(image, lines), source.at("single_sketch"))
        return Extracted(drawn[:, :, None], {"method": "as it is", "lines": lines})
    return sketch_of("single_sketch", _single_image(image, source, None).tensor, source)


# What comes from a still picture. The resizes are the released ones.
_STILLS: dict[str, Callable[[Tensor, Source, str | None], Extracted]] = {
    "style": _style,
    "single_image": _single_image,
    "single_sketch": _single_sketch,
}


def save_extraction(extraction: Extraction, out: str | Path) -> Path:
    """Writes `condition`, and `vectors` where there are any, into a `.safetensors` with the settings as metadata."""
    out = Path(out)
    if out.suffix.lower() != ".safetensors":
        raise UserError(f"{out} cannot be written: expected a name that ends in .safetensors.")
    tensors = {"condition": extraction.extracted.tensor.float()}
    if extraction.vectors is not None:
        tensors["vectors"] = extraction.vectors
    save_tensors(out, tensors, {KEY: json.dumps(extraction.settings)})
    return out


def preview(extraction: Extraction, source: Source, path: str | Path) -> Path:
    """Something to look at: a `.png` is a contact sheet, any other name a video. Motion is arrows over the frames."""
    path = Path(path)
    picture = picture_of(extraction.kind, extraction.extracted.tensor, source)
    if path.suffix.lower() == ".png":
        return write_contact_sheet(path, [(extraction.kind, picture)])
    return write_video(path, picture, source.plan.rate if source.plan else 1)


def summary(extraction: Extraction) -> dict[str, Any]:
    """What was extracted, in values that JSON holds: the settings, the shape and the range of the values."""
    tensor = extraction.extracted.tensor.float()
    values = {"shape": list(tensor.shape), "least": tensor.min().item(), "mean": tensor.mean().item(),
              "most": tensor.max().item()}  # fmt: skip
    rows = {} if extraction.vectors is None else {"vectors": len(extraction.vectors)}
    return {**extraction.settings, **values, **rows, "note": extraction.extracted.note}


def picture_of(kind: str, tensor: Tensor, source: Source | None = None) -> Tensor:
    """A condition `(1, C, F, H, W)` as pictures `(1, 1 or 3, F, H, W)` in [0, 1]; motion over a source's frames."""
    return _PICTURES.get(kind, lambda x, _: x)(tensor.float(), source)


def _motion_picture(field: Tensor, source: Source | None) -> Tensor:
    from ..extract.pictures import arrows_picture, flow_picture

    return flow_picture(field) if source is None else arrows_picture(field, source.frames("motion"))


_PICTURES: dict[str, Callable[[Tensor, Source | None], Tensor]] = {
    "motion": _motion_picture,
    "depth": lambda x, _: x / x.amax().clamp(min=1e-6),
    "mask": lambda x, _: x[:, :3] / 2 + 0.5,
}


def _plain(source: Source) -> dict[str, Any]:
    """The settings of a source, but for the file, in values that JSON holds."""
    values = {f.name: getattr(source, f.name) for f in dataclasses.fields(source) if f.name not in ("path", "plan")}
    values["extraction"] = dataclasses.asdict(source.extraction)
    if source.plan is not None:
        values |= {"start": source.plan.start, "rate": float(source.plan.rate), "frames": source.plan.frames}
    return json.loads(json.dumps(values, default=str))


def check_names(options: Mapping[str, Any]) -> None:
    """Refuses outputs before anything is extracted: other endings, folders, and what is read. Raises `UserError`."""
    out, shown = options["out"], options["preview"]
    if out.suffix.lower() != ".safetensors":
        raise UserError(f"{out} cannot be written: expected a name that ends in .safetensors.")
    if shown is not None and shown.suffix.lower() != ".png":
        check_format(shown)
    inputs = [options[name] for name in ("file", "mask", "depth_model", "depth_maps", "checkpoint")]
    read = {os.path.realpath(path) for path in filter(None, inputs)}
    for path in filter(None, (out, shown)):
        check_place(path)
        if read & {os.path.realpath(path), os.path.realpath(path.parent)} and path.exists():
            raise UserError(f"{path} would overwrite what is read: give another name.")
