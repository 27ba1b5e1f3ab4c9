"""Inspect a checkpoint without running it: `./vc info`."""

import dataclasses
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..config import Config, UNetConfig
from ..errors import UserError, shorten
from ..parsing import parse_json
from ..progress import Progress
from .files import files_of, sha256
from .formats import is_known_extra, layout_of
from .loading import on_meta
from .origins import Layout, check, names_of, unused
from .reading import PARTS, Checkpoint, Part, read_checkpoint


@dataclass(frozen=True)
class PartInfo:
    """One part of a file: its layout, sizes and dtypes, and `wrong`, an error message (None: the part is complete)."""

    name: str
    layout: str
    tensors: int
    parameters: int
    nbytes: int
    dtypes: tuple[str, ...]
    wrong: str | None


@dataclass(frozen=True)
class FileInfo:
    """The report of `./vc info` on a file. For the other fields see `Checkpoint`."""

    path: Path
    nbytes: int
    sha256: str
    parts: tuple[PartInfo, ...]
    config: Config | None
    assumed: tuple[str, ...]
    extra: tuple[str, ...]
    training: Any = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(part.name for part in self.parts)

    @property
    def complete(self) -> bool:
        return all(part.wrong is None for part in self.parts)


def inspect(path: str | Path, progress: Progress | None = None, **overrides: Any) -> FileInfo:
    """Return everything that is known about a file, or a folder that diffusers wrote, without running the network. For
    `overrides` and the `UserError`s see `read_checkpoint`."""
    checkpoint = read_checkpoint(path, **overrides)
    infos, extra = [], list(checkpoint.extra)
    for part in checkpoint.parts.values():
        _, layout = network_of(part, checkpoint.config)
        infos.append(_part_info(part, layout))
        if part.name != "model":  # those of the network are in `checkpoint.extra` already
            extra += [name for name in unused(layout, part.tensors) if not is_known_extra(part.name, name)]
    return FileInfo(
        checkpoint.path,
        sum(file.stat().st_size for file in files_of(path)),
        sha256(path, progress),
        tuple(infos),
        checkpoint.config,
        tuple(checkpoint.assumed),
        tuple(extra),
        parsed_training(checkpoint.training),
    )


def parsed_training(text: str | None) -> Any:
    """Return the metadata's `training` as values, or as text if another program wrote something else there."""
    try:
        return None if text is None else parse_json(text)
    except ValueError:
        return text


def knows_scenes_only(checkpoint: Checkpoint) -> bool:
    """Whether a network is smaller than the released one and was trained only on drawn scenes. The metadata that
    training writes in every file says so: the design of a bundled checkpoint, or a recipe with its kinds of data."""
    training = parsed_training(checkpoint.training)
    if checkpoint.config is None or checkpoint.config.unet.width >= UNetConfig().width:
        return False
    if not isinstance(training, dict):
        return False
    recipe = training.get("recipe")
    data = recipe.get("data") if isinstance(recipe, dict) else None
    kinds = {domain.get("kind") for domain in data if isinstance(domain, dict)} if isinstance(data, list) else set()
    return "design" in training or kinds == {"synthetic"}


def _part_info(part: Part, layout: Layout) -> PartInfo:
    wrong = None
    try:
        check_part(part, layout)
    except UserError as error:
        wrong = str(error)
    tensors, used = part.tensors, names_of(layout)
    names = [name for name in tensors.shapes if name in used]
    parameters, nbytes = (sum(map(count, names)) for count in (tensors.numel, tensors.nbytes))
    kinds = Counter(
        f"{tensors.packed[name]} with scales" if name in tensors.packed else str(tensors.dtypes[name]) for name in names
    )
    dtypes = tuple(kind.removeprefix("torch.") for kind, _ in kinds.most_common())
    return PartInfo(part.name, part.layout, len(names), parameters, nbytes, dtypes, wrong)


def check_part(part: Part, layout: Layout) -> None:
    """Raise `UserError` if a part is incomplete, has other shapes, or requires scalars that are not supported."""
    from .loading import check_scalars

    check(layout, part.tensors, PARTS[part.name])
    if part.name == "vae":
        check_scalars(part.tensors)


def network_of(part: Part, config: Config | None) -> tuple[nn.Module, Layout]:
    """Return the network of a part, on meta, and where its parameters are in the file. Optional tensors that a text
    tower does not have are left out. Without a config the sizes are the released ones."""
    from ..encoders.autoencoder import new_autoencoder
    from ..encoders.clip import new_towers

    shapes = part.tensors.shapes
    if part.name in ("model", "vae"):
        module = on_meta(config) if part.name == "model" else new_autoencoder(part.layout, device="meta")
        return module, layout_of(part.name, part.layout, module, shapes)
    module = new_towers((config or Config()).towers, "meta")
    visual, module.visual = module.visual, None
    if part.name == "image":
        return visual, layout_of("image", part.layout, visual, shapes)
    layout = dict(layout_of("text", part.layout, module, shapes))
    last = f"transformer.resblocks.{module.transformer.layers - 1}."
    optional = ["text_projection", "logit_scale"]
    if layout[f"{last}ln_1.weight"].names[0] not in shapes:  # as in Stable Diffusion 2.x
        del module.transformer.resblocks[-1]
        layout = {name: origin for name, origin in layout.items() if not name.startswith(last)}
    return module, {n: o for n, o in layout.items() if n not in optional or o.names[0] in shapes}


def as_mapping(info: FileInfo) -> dict[str, Any]:
    """Return the report as JSON values."""
    config = None if info.config is None else json.loads(info.config.to_json())
    return {**dataclasses.asdict(info), "path": str(info.path), "config": config, "whole": info.complete}


def as_text(info: FileInfo, brief: bool = False) -> str:
    """Return the report as text; `brief` leaves out the config."""
    name = "" if info.config is None or "model" not in info.names else f" {info.config.name},"
    lines = [f"{info.path}:{name} {info.nbytes / 1e6:.1f} MB", f"  SHA-256 {info.sha256}"]
    lines.append(f"  complete: {'yes' if info.complete else 'no'}")
    for part in info.parts:
        lines.append(
            f"  {part.name}: {PARTS[part.name]} in the layout {part.layout}, {part.parameters / 1e6:.1f} M parameters "
            f"in {part.tensors} tensors, {part.nbytes / 1e6:.1f} MB of {' and '.join(part.dtypes)}"
        )
        if part.wrong:
            lines.append(f"    ERROR: {part.wrong}")
    lines += [f"  assumed: {sentence}" for sentence in info.assumed]
    if info.extra:
        lines.append(f"  not used: {len(info.extra)} tensors ({shorten(info.extra)})")
    if name and info.config.few_steps:
        steps, sampler, guidance = info.config.steps, info.config.sampler, info.config.guidance
        lines.append(f"  distilled for few steps: {steps} steps of {sampler}, guidance scale {guidance:g}")
    if name and not brief:
        lines.append(f"  sampling_rate: {info.config.extraction.sampling_rate:g} frames per second of a clip")
    if info.config is not None and not brief:
        lines.append(json.dumps(json.loads(info.config.to_json()), indent=2))
    if info.training is not None and not brief:
        lines.append("  Trained by this project. Add --json to see the settings of the training.")
    return "\n".join(lines)
