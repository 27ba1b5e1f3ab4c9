"""The same numbers under other names, in another type, in one file: `./vc convert`."""

import dataclasses
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import Config
from ..disk import check_folder, folder_beside
from ..errors import UserError, shorten
from ..families import assumed
from ..progress import Progress
from .diffusers_unet import diffusers_config, no_place
from .files import DIFFUSERS, PICKLED, check_target, save_tensors
from .formats import FORMATS, layout_of
from .inspection import FileInfo, check_part, inspect, network_of
from .loading import SCALARS, on_meta
from .origins import shapes_of
from .reading import PARTS, TRAINING, Part, read_checkpoint, sizes_in, with_overrides
from .tensors import DTYPES, StateDict

OURS = "videocomposer"
"""The layout of this project's own files: every part under its prefix, the config in the metadata."""

_ROOM = {
    OURS: tuple(PARTS),
    **{layout: tuple(part for part, other in FORMATS if other == layout) for _, layout in FORMATS},
}
"""Layout of a file -> the parts that it has room for."""
LAYOUTS = tuple(_ROOM)
_DIFFUSERS, _DIFFUSERS_CONFIG = "diffusers", "config.json"


def convert(
    source: str | Path,
    out: str | Path,
    *,
    add: Sequence[str | Path] = (),
    parts: Sequence[str] | None = None,
    layout: str | None = None,
    dtype: str | None = None,
    progress: Progress | None = None,
    **overrides: Any,
) -> FileInfo:
    """Writes a file's parts into another one.

    Args:
        out: a `.safetensors`, or a `.pth` as torch saves it; of a network in the layout `diffusers` also a folder, by a
            name without an ending, which diffusers' `from_pretrained` takes.
        add: files that bring further parts; the first file that brings a part gives it.
        parts: which parts to write (`model`, `vae`, `text`, `image`); by default all that the layout has room for.
        layout: one of `LAYOUTS`; by default `released` for a `.pth` of a network, else `videocomposer`.
        dtype: `fp32`, `fp16`, `bf16` or `fp8` (the network's matrices; the rest in bf16); by default as it is.
        overrides: of what the network's file says, see `vc_core.families.overridden`; kept in the new file.

    Raises `UserError` for a source that cannot be read or is incomplete, or parts that the layout has no room for.
    """
    out, parts = Path(out), [parts] if isinstance(parts, str) else parts
    folder = layout == _DIFFUSERS and not out.suffix
    (_check_folder if folder else check_target)(out)
    files = [read_checkpoint(path) for path in (source, *add)]
    found = {name: part for file in reversed(files) for name, part in file.parts.items()}
    configs = [file.config for file in sorted(files, key=lambda file: "model" not in file.parts)]
    config = next(filter(None, configs), None)  # the network's own, where there is one
    overrides = {name: value for name, value in overrides.items() if value is not None}
    config = with_overrides(config, found, source, overrides)
    pickled = out.suffix.lower() in PICKLED
    layout = layout or ("released" if pickled and "model" in found else OURS)
    if dtype not in (None, *DTYPES):
        raise UserError(f"The dtype '{dtype}' is unknown: expected one of {', '.join(DTYPES)}.")
    if layout == OURS and pickled:
        raise UserError(f"{out} has no room for the config: give a name that ends in .safetensors, or another layout.")
    chosen = _chosen(layout, found, parts, config)
    if pickled and "model" in chosen:
        _check_tellable(out, layout, config, overrides)
    if folder and "model" not in chosen:
        raise UserError(f"{out} would be a folder, which is for a network: give a name that ends in .safetensors.")
    tensors: StateDict = {}
    for part in (found[name] for name in chosen):
        ours = FORMATS[part.name, part.layout].ours
        target = ours if layout == OURS else layout
        if FORMATS[part.name, target].ours != ours:
            raise UserError(
                f"{part.tensors.source}: {PARTS[part.name]} in the layout {part.layout} is another network than "
                f"{layout} is for: choose another layout."
            )
        prefix = f"{part.name}." if layout == OURS else FORMATS[part.name, layout].prefix
        converted = _converted(part, target, config, progress)
        tensors |= {prefix + key: _typed(tensor, dtype, part.name) for key, tensor in converted}
    # Every .safetensors carries the config where there is one: a tower's file then says the tower's sizes.
    if progress is not None:
        progress("writing", 0, 1)
    metadata = {} if config is None else {"config": config.to_json()}
    if "model" in chosen and (training := next(file.training for file in files if "model" in file.parts)):
        metadata[TRAINING] = training
    if folder:
        with folder_beside(out) as beside:
            save_tensors(beside / DIFFUSERS, tensors, metadata)
            (beside / _DIFFUSERS_CONFIG).write_text(json.dumps(diffusers_config(config), indent=2), encoding="utf-8")
    else:
        save_tensors(out, tensors, metadata)
    return inspect(out, progress)


def _check_folder(out: Path) -> None:
    """Refuses a folder to write that has other files than those of an earlier one. Raises `UserError`."""
    check_folder(out)
    if out.exists() and (others := {path.name for path in out.iterdir()} - {DIFFUSERS, _DIFFUSERS_CONFIG}):
        raise UserError(f"{out} has other files ({shorten(sorted(others))}): give the name of a new folder.")


def _chosen(
    layout: str, found: Mapping[str, Part], parts: Sequence[str] | None, config: Config | None
) -> Sequence[str]:
    """The parts to write. Raises `UserError` for one that is not there, or that the layout has no room for."""
    if layout not in _ROOM:
        raise UserError(f"The layout '{layout}' is unknown: expected one of {', '.join(LAYOUTS)}.")
    room, there = ", ".join(_ROOM[layout]), ", ".join(found)
    for name in parts or ():
        if name not in found:
            raise UserError(f"The part '{name}' is in none of the files: they have {there}.")
        if name not in _ROOM[layout]:
            raise UserError(f"The layout '{layout}' has no room for the part '{name}': it holds {room}.")
    chosen = [name for name in _ROOM[layout] if name in found] if parts is None else list(parts)
    if not chosen:
        raise UserError(f"The layout '{layout}' has no room for what the files have, {there}: it holds {room}.")
    if layout == _DIFFUSERS and len(chosen) > 1:
        if parts is not None:
            raise UserError(f"The layout '{layout}' has each network in a file of its own: give one of {room} alone.")
        chosen = ["model" if no_place(config.unet) is None else "vae"]
    return chosen


def _check_tellable(out: Path, layout: str, config: Config, overrides: Collection[str]) -> None:
    """Refuses to write a network without its config where the names and shapes alone would make it another one, or
    what was said of it would be lost."""
    origins = layout_of("model", layout, on_meta(config)).values()
    try:
        told, _ = assumed(sizes_in(layout, {origin.names[0]: origin.shape for origin in origins}))
    except UserError:  # the released head width does not even divide this network's
        differing = [f"unet.head_dim is {config.unet.head_dim}"]
    else:
        kept = dict.fromkeys(["few_steps", *overrides, *(("width", "height") if "size" in overrides else ())])
        differing = [
            f"{name} is {getattr(config, name)!r}"
            for name in kept
            if hasattr(told, name) and getattr(config, name) != getattr(told, name)
        ]
        differing += [
            f"{section}.{name} is {value!r}"
            for section in ("unet", "diffusion", "extraction", "autoencoder", "towers")
            for name, value in dataclasses.asdict(getattr(config, section)).items()
            if value != getattr(getattr(told, section), name)
        ]
    if differing:
        raise UserError(
            f"{out} would lose what a .pth cannot say of this network ({shorten(differing, 3)}): give a name that ends "
            "in .safetensors."
        )


def _converted(part: Part, target: str, config: Config, progress: Progress | None) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a part under the names and in the shapes of another layout; views where that is possible."""
    module, source = network_of(part, config)
    shapes = shapes_of(module)
    check_part(part, source)
    written = source if target == part.layout else layout_of(part.name, target, module)
    get = part.tensors.get()
    for done, (name, origin) in enumerate(source.items(), 1):
        yield from written[name].part(origin.join(get, shapes[name])).items()
        if progress is not None:
            progress("converting", done, len(source))
    if target == "taesd":
        yield from ((name, torch.tensor(value)) for name, value in SCALARS.items())


def _typed(tensor: Tensor, dtype: str | None, part: str) -> Tensor:
    """In another type; eight bits are for the network's matrices, the rest is small or would suffer."""
    if dtype is None:
        return tensor
    suffers = dtype == "fp8" and (part != "model" or tensor.ndim < 2)
    return tensor.to(torch.bfloat16 if suffers else DTYPES[dtype])
