"""Checkpoints: what a file is, told by the names and shapes in it; loading the network; saving.

A file of this project is one `.safetensors`: the tensors of the network under `model.` (released names), of the bundled
autoencoder under `vae.`, of the towers under `text.` and `image.` (OpenCLIP names), and the config as JSON in the
metadata. A released `.pth` is read as it is, and so are ModelScope's text-to-video network in diffusers' layout and the
files that bring the other parts: Stable Diffusion's autoencoder and OpenCLIP's towers in any of their layouts
(`vc_core.checkpoint.formats`).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import Config, UNetConfig, unet_config_from_shapes
from ..errors import UserError
from ..families import assumed, overridden
from .diffusers_unet import diffusers_names, unet_config_from_diffusers
from .files import files_of, open_tensors, save_tensors
from .foreign import only_pictures
from .formats import FORMATS, find_parts
from .origins import Shapes
from .released import key_table, tensor_names
from .tensors import Tensors

PARTS = {
    "model": "the network",
    "vae": "the autoencoder",
    "text": "the text tower",
    "image": "the image tower",
}
# Tensors that are no loss: of some releases, which the network does not use, and of ComfyUI's save nodes, whose mark of
# the prediction the config has too, and whose CLIPs carry a factor of their training.
LEFTOVERS = ("canny_embedding", "fps_embedding", "zero_y", "black_image_feature", "v_pred")
_LEFTOVER_OF_CLIP = "logit_scale"
CONFIG_TENSOR = "videocomposer_config"
"""The config's JSON as bytes, in files of programs that keep no metadata, such as ComfyUI's save nodes."""
TRAINING = "training"
"""Key of the metadata under which a file says how its network was trained."""
BUNDLED = Path(__file__).parents[1] / "assets" / "videocomposer_small.safetensors"


@dataclass(frozen=True)
class Part:
    """One network in a file: which part it is, in whose layout, its tensors under that layout's names, and what stands
    before these in the file."""

    name: str
    layout: str
    tensors: Tensors
    prefix: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds; nothing of it is in memory.

    Attributes:
        config: from the metadata, else read off the network's shapes; None for a file without a network.
        parts: by name, see `PARTS`.
        assumed: one sentence for each thing that neither said.
        extra: names of tensors that nothing uses, of those of the network and beside the parts.
        training: what a file of `./vc export` says of how its network was trained, as JSON.
    """

    path: Path
    config: Config | None
    parts: dict[str, Part]
    assumed: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    training: str | None = None

    def part(self, name: str) -> Part:
        """One part. Raises `UserError` where the file has none."""
        if name not in self.parts:
            if name == "model" and (told := only_pictures(self.extra)):
                raise UserError(f"{self.path} {told}.")
            raise UserError(
                f"{self.path} holds no '{name}' part, {PARTS[name]}: it has {', '.join(self.parts) or 'none at all'}; "
                "name a file that has one."
            )
        return self.parts[name]


def read_checkpoint(path: str | Path, **overrides: Any) -> Checkpoint:
    """Finds out what a file is, or a folder as diffusers writes it. Its tensors stay in the file.

    Args:
        overrides: of what the file says of the network, see `vc_core.families.overridden`.

    Raises:
        UserError: no such file, a truncated or foreign one, a config that this version does not know, or an
            override that is not possible.
    """
    path = Path(path)
    opened = [open_tensors(file) for file in files_of(path)]
    parts = {name: part for tensors in reversed(opened) for name, part in _parts(tensors, str(path)).items()}
    if not parts:
        if told := only_pictures(opened[0].shapes):
            raise UserError(f"{path} {told}.")
        markers = FORMATS["model", "released"].markers[0]
        raise UserError(
            f"{path}: The tensors are not those of a VideoComposer network, nor of an autoencoder or tower for it: "
            f"expected {' and '.join(markers)} among the names, found {', '.join(list(opened[0].shapes)[:3])}."
        )
    overrides = {name: value for name, value in overrides.items() if value is not None}
    config, unsaid = _config(path, opened[0], parts.get("model"), overrides)
    config = with_overrides(config, parts, path, overrides)
    parts = {name: parts[name] for name in PARTS if name in parts}
    extra = _extra(opened[0], parts, config)
    return Checkpoint(path, config, parts, unsaid, extra, opened[0].metadata.get(TRAINING))


def with_overrides(
    config: Config | None, parts: Collection[str], source: str | Path, overrides: Mapping[str, Any]
) -> Config | None:
    """A config with what a user says in place of the file. Raises `UserError` where there is no network among the parts
    that it could be said of."""
    if not overrides:
        return config
    if "model" not in parts:
        raise UserError(f"{source} holds no network, of which {', '.join(overrides)} could be said: leave these out.")
    return overridden(config, **overrides)


def _parts(tensors: Tensors, source: str) -> dict[str, Part]:
    """The parts in one file; none where it has none."""
    found = find_parts(tensors.shapes, source)
    if "config" in tensors.metadata and any(name.startswith("model.") for name in tensors.shapes):
        found.setdefault("model", ("released", "model."))  # ours, however damaged, and to be told what it lacks
    prefixes = tuple(prefix for _, prefix in found.values())
    parts = {}
    for name, (layout, prefix) in found.items():
        # What stands under a longer prefix is of another part (open_clip's `visual.`).
        inner = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
        parts[name] = Part(name, layout, tensors.below(prefix, inner), prefix)
    return parts


def _extra(tensors: Tensors, parts: Mapping[str, Part], config: Config | None) -> list[str]:
    """The names of a file's tensors that no part nor its network has a place for."""
    prefixes = tuple(part.prefix for part in parts.values() if part.tensors.source == tensors.source)
    extra = [name for name in tensors.shapes if not name.startswith((*prefixes, CONFIG_TENSOR))]
    if "model" in parts and config is not None:
        known = tensor_names(_NETWORKS[parts["model"].layout][1](config.unet))
        extra += [name for name in parts["model"].tensors.shapes if name not in known]
    return [name for name in extra if not name.startswith(LEFTOVERS) and not name.endswith(_LEFTOVER_OF_CLIP)]


_NETWORKS = {
    "released": (unet_config_from_shapes, key_table),
    "diffusers": (unet_config_from_diffusers, partial(diffusers_names, temporal=True)),
}
"""Layout of a network -> what reads its sizes off shapes, and the names there of modules of such sizes."""


def sizes_in(layout: str, shapes: Shapes) -> UNetConfig:
    """The sizes of a network in a layout. Raises `UserError`, or what missing names make."""
    return _NETWORKS[layout][0](shapes)


def save_checkpoint(
    path: str | Path,
    config: Config,
    parts: Mapping[str, Mapping[str, Tensor]],
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a `.safetensors` with the config in its metadata; the file appears whole or not at all. `parts` are the
    tensors by part, of `model` as `to_released` gives them; `dtype` is for floating-point ones, None leaves them."""
    tensors = {f"{part}.{name}": tensor for part, state in parts.items() for name, tensor in state.items()}
    if dtype is not None:
        tensors = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    save_tensors(path, tensors, {**(metadata or {}), "config": config.to_json()})


def _config(
    path: Path, tensors: Tensors, model: Part | None, overrides: Collection[str]
) -> tuple[Config | None, list[str]]:
    """The config of a file, and what of it was assumed."""
    try:
        if "config" in tensors.metadata:
            return Config.from_json(tensors.metadata["config"]), []
        if CONFIG_TENSOR in tensors.shapes:
            text = tensors.get()(CONFIG_TENSOR).to(torch.uint8).flatten().numpy().tobytes()
            return Config.from_json(text.decode(errors="replace")), []
        if model is None:
            return None, []
        config, sentence = assumed(sizes_in(model.layout, model.tensors.shapes), overrides)
        return config, [sentence]
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"{path} does not describe a VideoComposer network ({type(error).__name__}: {error}): it is incomplete or "
            "damaged; download or save it again."
        ) from error
