"""Convert checkpoints to another layout or dtype, in one file: `./vc convert`."""

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
from ..families import inferred_config
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
"""This project's own layout: every part under its prefix, the config in the metadata."""

_ROOM = {
    OURS: tuple(PARTS),
    **{layout: tuple(part for part, other in FORMATS if other == layout) for _, layout in FORMATS},
}
"""Layout of a file -> the parts that it can store."""
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
    """Write the parts of a file into another file, and inspect the result.

    Args:
        out: a `.safetensors`, or a `.pth` as torch saves it. For a network in the layout `diffusers` also a folder (a
            name without a suffix), which diffusers' `from_pretrained` can load.
        add: files with further parts. If several files contain a part, the first file is used.
        parts: which parts to write (`model`, `vae`, `text`, `image`); by default all that the layout can store.
        layout: one of `LAYOUTS`; by default `released` for a `.pth` of a network, else `videocomposer`.
        dtype: `fp32`, `fp16`, `bf16` or `fp8` (the network's matrices; the rest in bf16); by default unchanged.
        overrides: replace keys of the network's config, see `vc_core.families.overridden`; stored in the new file.

    Raises `UserError` if a source cannot be read or is incomplete, or if the layout cannot store the parts.
    """
    out, parts = Path(out), [parts] if isinstance(parts, str) else parts
    folder = layout == _DIFFUSERS and not out.suffix
    (_check_folder if folder else check_target)(out)
    files = [read_checkpoint(path) for path in (source, *add)]
    available = {name: part for file in reversed(files) for name, part in file.parts.items()}
    configs = [file.config for file in sorted(files, key=lambda file: "model" not in file.parts)]
    config = next(filter(None, configs), None)  # the network's own, if there is one
    overrides = {name: value for name, value in overrides.items() if value is not None}
    config = with_overrides(config, available, source, overrides)
    pickled = out.suffix.lower() in PICKLED
    layout = layout or ("released" if pickled and "model" in available else OURS)
    if dtype not in (None, *DTYPES):
        raise UserError(f"Unknown dtype '{dtype}'. Expected one of {', '.join(DTYPES)}.")
    if layout == OURS and pickled:
        raise UserError(f"{out}: {out.suffix} cannot store a config. Save as .safetensors, or choose another layout.")
    chosen = _chosen(layout, available, parts, config)
    if pickled and "model" in chosen:
        _check_storable(out, layout, config, overrides)
    if folder and "model" not in chosen:
        raise UserError(f"{out}: Only a network can be written as a folder. Use a name that ends in .safetensors.")
    tensors: StateDict = {}
    for part in (available[name] for name in chosen):
        ours = FORMATS[part.name, part.layout].ours
        target = ours if layout == OURS else layout
        if FORMATS[part.name, target].ours != ours:
            raise UserError(
                f"{part.tensors.source}: The layout {layout} does not fit this network ({PARTS[part.name]}, layout "
                f"{part.layout}). Choose another layout."
            )
        prefix = f"{part.name}." if layout == OURS else FORMATS[part.name, layout].prefix
        converted = _converted(part, target, config, progress)
        tensors |= {prefix + key: _typed(tensor, dtype, part.name) for key, tensor in converted}
    # Every .safetensors stores the config if there is one: a file with only a tower then contains the tower's sizes.
    if progress is not None:
        progress("writing", 0, 1)
    metadata = {} if config is None else {"config": config.to_json()}
    if "model" in chosen and (training := next(file.training for file in files if "model" in file.parts)):
        metadata[TRAINING] = training
    if folder:
        with folder_beside(out) as temporary:
            save_tensors(temporary / DIFFUSERS, tensors, metadata)
            (temporary / _DIFFUSERS_CONFIG).write_text(json.dumps(diffusers_config(config), indent=2), encoding="utf-8")
    else:
        save_tensors(out, tensors, metadata)
    return inspect(out, progress)


def _check_folder(out: Path) -> None:
    """Raise `UserError` if the folder contains files other than those that `convert` writes."""
    check_folder(out)
    if out.exists() and (others := {path.name for path in out.iterdir()} - {DIFFUSERS, _DIFFUSERS_CONFIG}):
        raise UserError(f"{out} contains other files ({shorten(sorted(others))}). Choose the name of a new folder.")


def _chosen(
    layout: str, available: Mapping[str, Part], parts: Sequence[str] | None, config: Config | None
) -> Sequence[str]:
    """Return the parts to write. Raises `UserError` if a part is missing or the layout cannot store it."""
    if layout not in _ROOM:
        raise UserError(f"Unknown layout '{layout}'. Expected one of {', '.join(LAYOUTS)}.")
    room, names = ", ".join(_ROOM[layout]), ", ".join(available)
    for name in parts or ():
        if name not in available:
            raise UserError(f"None of the files contains the part '{name}'. They contain {names}.")
        if name not in _ROOM[layout]:
            raise UserError(f"The layout '{layout}' can store only {room}, not '{name}'. Choose another layout.")
    chosen = [name for name in _ROOM[layout] if name in available] if parts is None else list(parts)
    if not chosen:
        raise UserError(
            f"The layout '{layout}' can store only {room}, but the files contain {names}. Choose another layout."
        )
    if layout == _DIFFUSERS and len(chosen) > 1:
        if parts is not None:
            raise UserError(f"The layout '{layout}' stores one network per file. Choose one of {room}.")
        chosen = ["model" if no_place(config.unet) is None else "vae"]
    return chosen


def _check_storable(out: Path, layout: str, config: Config, overrides: Collection[str]) -> None:
    """Raise `UserError` if a file without a config would be read back with a different config, or would lose the
    overrides."""
    origins = layout_of("model", layout, on_meta(config)).values()
    try:
        inferred, _ = inferred_config(sizes_in(layout, {origin.names[0]: origin.shape for origin in origins}))
    except UserError:  # the released head width does not divide this network's width
        differing = [f"unet.head_dim is {config.unet.head_dim}"]
    else:
        keys = dict.fromkeys(["few_steps", *overrides, *(("width", "height") if "size" in overrides else ())])
        differing = [
            f"{name} is {getattr(config, name)!r}"
            for name in keys
            if hasattr(inferred, name) and getattr(config, name) != getattr(inferred, name)
        ]
        differing += [
            f"{section}.{name} is {value!r}"
            for section in ("unet", "diffusion", "extraction", "autoencoder", "towers")
            for name, value in dataclasses.asdict(getattr(config, section)).items()
            if value != getattr(getattr(inferred, section), name)
        ]
    if differing:
        raise UserError(
            f"{out}: {out.suffix} cannot store this config ({shorten(differing, 3)}). Save as .safetensors."
        )


def _converted(part: Part, target: str, config: Config, progress: Progress | None) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a part with the names and shapes of another layout, as views if possible."""
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
    """Return the tensor in another dtype. fp8 is only for the network's matrices: other tensors are small, or lose too
    much precision."""
    if dtype is None:
        return tensor
    keep_16_bits = dtype == "fp8" and (part != "model" or tensor.ndim < 2)
    return tensor.to(torch.bfloat16 if keep_16_bits else DTYPES[dtype])
