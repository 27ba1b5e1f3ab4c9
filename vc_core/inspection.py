"""What a file is, told without running it: `./vc info`."""

import dataclasses
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from .checkpoint import PARTS, Checkpoint, Part, on_meta, read_checkpoint
from .config import Config, UNetConfig
from .encoders.layouts import is_known_extra, layout_of
from .errors import UserError, shorten
from .files import Tensors, sha256
from .layouts import Layout, check, names_of, unused
from .model.layout import released_layout
from .parsing import parse_json
from .progress import Progress

# What a text tower may lack: nothing here reads it.
_OPTIONAL = re.compile(r"^(text_projection|logit_scale)$")


@dataclass(frozen=True)
class PartInfo:
    """One part of a file: its layout, sizes and types, and what is wrong with it (None: it is whole)."""

    name: str
    layout: str
    tensors: int
    parameters: int
    nbytes: int
    dtypes: tuple[str, ...]
    wrong: str | None


@dataclass(frozen=True)
class FileInfo:
    """What `./vc info` says of a file; see `Checkpoint` for the rest."""

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
    def whole(self) -> bool:
        return all(part.wrong is None for part in self.parts)


def inspect(path: str | Path, progress: Progress | None = None) -> FileInfo:
    """Everything that can be said of a file without running it. Raises `UserError` as `read_checkpoint` does."""
    checkpoint = read_checkpoint(path)
    found = [_inspect_part(part, checkpoint.config) for part in checkpoint.parts.values()]
    return FileInfo(
        checkpoint.path,
        checkpoint.path.stat().st_size,
        sha256(path, progress),
        tuple(info for info, _ in found),
        checkpoint.config,
        tuple(checkpoint.assumed),
        (*checkpoint.extra, *(name for _, extra in found for name in extra)),
        _training(checkpoint.training),
    )


def _training(text: str | None) -> Any:
    """What the metadata says of the training, as values; of a foreign program its text."""
    try:
        return None if text is None else parse_json(text)
    except ValueError:
        return text


def knows_scenes_only(checkpoint: Checkpoint) -> bool:
    """Whether a network is smaller than the released one and has seen nothing but drawn scenes, by what `training`
    notes in every file that it writes: the design of a bundled checkpoint, or a recipe with the kinds of its data."""
    said = _training(checkpoint.training)
    if checkpoint.config is None or checkpoint.config.unet.width >= UNetConfig().width or not isinstance(said, dict):
        return False
    recipe = said.get("recipe")
    data = recipe.get("data") if isinstance(recipe, dict) else None
    kinds = {one.get("kind") for one in data if isinstance(one, dict)} if isinstance(data, list) else set()
    return "design" in said or kinds == {"synthetic"}


def _inspect_part(part: Part, config: Config | None) -> tuple[PartInfo, list[str]]:
    """What a part is, and the names in it that nothing uses (those of the network are known already)."""
    layout, wrong = layout_in(part, part_module(part, config)), None
    try:
        check_part(part, layout)
    except UserError as error:
        wrong = str(error)
    tensors = part.tensors
    known = names_of(layout)
    names = [name for name in tensors.shapes if name in known]
    kinds = Counter(_kind(tensors, name) for name in names)
    info = PartInfo(
        part.name,
        part.layout,
        len(names),
        sum(tensors.numel(name) for name in names),
        sum(tensors.nbytes(name) for name in names),
        tuple(kind for kind, _ in kinds.most_common()),
        wrong,
    )
    if part.name == "model":
        return info, []
    return info, [name for name in unused(layout, tensors) if not is_known_extra(part.name, name)]


def _kind(tensors: Tensors, name: str) -> str:
    kind = str(tensors.packed.get(name, tensors.dtypes[name])).removeprefix("torch.")
    return f"{kind} with scales" if name in tensors.packed else kind


def check_part(part: Part, layout: Layout) -> None:
    """Refuses a part that is incomplete, of another shape, or that asks for what nothing here does."""
    check(layout, part.tensors, PARTS[part.name])
    if part.layout == "taesd":
        from .encoders.autoencoder import check_scalars

        check_scalars(part.tensors)


def part_module(part: Part, config: Config | None) -> nn.Module:
    """The network that a part belongs to, on meta. Without a config the sizes are the released ones."""
    from .encoders.autoencoder import new_autoencoder
    from .encoders.clip import build_clip, open_clip_config

    if part.name == "model":
        return on_meta(config)
    if part.name == "vae":
        return new_autoencoder(part.layout, device="meta")
    clip = build_clip(open_clip_config((config or Config()).towers), "meta")
    if part.name == "image":
        return clip.visual
    clip.visual = None
    last = f"transformer.resblocks.{clip.transformer.layers - 1}."
    names = layout_of("text", part.layout, clip, part.tensors.shapes)[f"{last}ln_1.weight"].names
    if names[0] not in part.tensors.shapes:  # Stable Diffusion 2.x leaves the last block out, since nothing uses it
        del clip.transformer.resblocks[-1]
    return clip


def layout_in(part: Part, module: nn.Module) -> Layout:
    """Where the parameters of a part's network lie in its file; what they may lack, and do, is left out."""
    if part.name == "model":
        return released_layout(module)
    layout = layout_of(part.name, part.layout, module, part.tensors.shapes)
    lacking = {name for name in layout if _OPTIONAL.match(name) and layout[name].names[0] not in part.tensors.shapes}
    return {name: origin for name, origin in layout.items() if name not in lacking}


def as_mapping(info: FileInfo) -> dict[str, Any]:
    """The same in values that JSON holds."""
    config = None if info.config is None else json.loads(info.config.to_json())
    return {**dataclasses.asdict(info), "path": str(info.path), "config": config, "whole": info.whole}


def as_text(info: FileInfo, brief: bool = False) -> str:
    """The same for people; `brief` leaves the config out."""
    name = "" if info.config is None or "model" not in info.names else f" {info.config.name},"
    lines = [f"{info.path}:{name} {info.nbytes / 1e6:.1f} MB", f"  SHA-256 {info.sha256}"]
    for part in info.parts:
        lines.append(
            f"  {part.name}: {PARTS[part.name]} in the layout {part.layout}, {part.parameters / 1e6:.1f} M parameters "
            f"in {part.tensors} tensors, {part.nbytes / 1e6:.1f} MB of {' and '.join(part.dtypes)}"
        )
        if part.wrong:
            lines.append(f"    NOT WHOLE: {part.wrong}")
    lines += [f"  assumed: {sentence}" for sentence in info.assumed]
    if info.extra:
        lines.append(f"  not used: {len(info.extra)} tensors ({shorten(info.extra)})")
    if info.config is not None and not brief:
        lines.append(json.dumps(json.loads(info.config.to_json()), indent=2))
    if info.training is not None and not brief:
        lines.append(f"  trained: {json.dumps(info.training, indent=2)}")
    return "\n".join(lines)
