"""Checkpoints: read a file, recognize it by the names and shapes of its tensors, and save one.

A file of this project is one `.safetensors`: the tensors of the network under `model.` (released names), of the bundled
autoencoder under `vae.`, of the towers under `text.` and `image.` (OpenCLIP names), and the config as JSON in the
metadata. A released `.pth` is read without conversion, and so are ModelScope's text-to-video network in diffusers'
layout and files with the other parts: Stable Diffusion's autoencoder and OpenCLIP's towers in any of their layouts
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
from ..families import inferred_config, overridden
from .diffusers_unet import diffusers_names, unet_config_from_diffusers
from .files import files_of, open_tensors, save_tensors
from .foreign import only_images
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
# Tensors that may be ignored: in some releases, tensors that the network does not use; in files of ComfyUI's save
# nodes, a marker of the prediction, which is also in the config, and a factor of CLIP's training.
LEFTOVERS = ("canny_embedding", "fps_embedding", "zero_y", "black_image_feature", "v_pred")
_LEFTOVER_OF_CLIP = "logit_scale"
CONFIG_TENSOR = "videocomposer_config"
"""The config's JSON as bytes, in files of programs that do not keep metadata, such as ComfyUI's save nodes."""
TRAINING = "training"
"""Key of the metadata that describes how the network was trained."""
BUNDLED = Path(__file__).parents[1] / "assets" / "videocomposer_small.safetensors"
BUNDLED_LORA = BUNDLED.parent / "loras" / "videocomposer_small_few_steps.safetensors"
"""Makes the bundled checkpoint one for few steps."""


@dataclass(frozen=True)
class Part:
    """One network in a file: the name of the part, its layout, its tensors under that layout's names, and the prefix of
    these names in the file."""

    name: str
    layout: str
    tensors: Tensors
    prefix: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a file; its tensors are not in memory.

    Attributes:
        config: from the metadata, else inferred from the network's shapes; None for a file without a network.
        parts: by name, see `PARTS`.
        assumed: notes on the settings that neither metadata nor shapes contain.
        extra: names of unused tensors, in the network and outside the parts.
        training: how the network was trained, as JSON, in a file of `./vc export`.
    """

    path: Path
    config: Config | None
    parts: dict[str, Part]
    assumed: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    training: str | None = None

    def part(self, name: str) -> Part:
        """Return one part. Raises `UserError` if the file does not contain it."""
        if name not in self.parts:
            if name == "model" and (message := only_images(self.extra)):
                raise UserError(f"{self.path} {message}.")
            raise UserError(
                f"{self.path} contains no '{name}' part ({PARTS[name]}). It contains "
                f"{', '.join(self.parts) or 'no parts'}. Use a file that contains it."
            )
        return self.parts[name]


def read_checkpoint(path: str | Path, **overrides: Any) -> Checkpoint:
    """Read the parts and config of a file, or of a folder that diffusers wrote. The tensors stay in the file.

    Args:
        overrides: replace keys of the network's config, see `vc_core.families.overridden`.

    Raises:
        UserError: the file is missing, cannot be read, is damaged or not supported, its config is from another version,
            or an override has a value that is not allowed.
    """
    path = Path(path)
    opened = [open_tensors(file) for file in files_of(path)]
    parts = {name: part for tensors in reversed(opened) for name, part in _parts(tensors, str(path)).items()}
    if not parts:
        if message := only_images(opened[0].shapes):
            raise UserError(f"{path} {message}.")
        markers = FORMATS["model", "released"].markers[0]
        raise UserError(
            f"{path} contains no VideoComposer network, autoencoder or tower. Expected tensors such as "
            f"{' and '.join(markers)}, found {', '.join(list(opened[0].shapes)[:3])}. Check the path."
        )
    overrides = {name: value for name, value in overrides.items() if value is not None}
    config, assumptions = _config(path, opened[0], parts.get("model"), overrides)
    config = with_overrides(config, parts, path, overrides)
    parts = {name: parts[name] for name in PARTS if name in parts}
    extra = _extra(opened[0], parts, config)
    return Checkpoint(path, config, parts, assumptions, extra, opened[0].metadata.get(TRAINING))


def with_overrides(
    config: Config | None, parts: Collection[str], source: str | Path, overrides: Mapping[str, Any]
) -> Config | None:
    """Return a config with the user's overrides. Raises `UserError` if there are overrides, but no network among the
    parts."""
    if not overrides:
        return config
    if "model" not in parts:
        names = ", ".join(overrides)
        raise UserError(f"{source} contains no network, so {names} cannot be set. Remove {names}.")
    return overridden(config, **overrides)


def _parts(tensors: Tensors, source: str) -> dict[str, Part]:
    """Return the parts in one file, which may be none."""
    places = find_parts(tensors.shapes, source)
    if "config" in tensors.metadata and any(name.startswith("model.") for name in tensors.shapes):
        # Ours, even if damaged: the error then lists what is missing.
        places.setdefault("model", ("released", "model."))
    prefixes = tuple(prefix for _, prefix in places.values())
    parts = {}
    for name, (layout, prefix) in places.items():
        # Tensors under a longer prefix belong to another part (open_clip's `visual.`).
        inner = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
        parts[name] = Part(name, layout, tensors.below(prefix, inner), prefix)
    return parts


def _extra(tensors: Tensors, parts: Mapping[str, Part], config: Config | None) -> list[str]:
    """Return the names of a file's tensors that belong to no part, or that the network does not use."""
    prefixes = tuple(part.prefix for part in parts.values() if part.tensors.source == tensors.source)
    extra = [name for name in tensors.shapes if not name.startswith((*prefixes, CONFIG_TENSOR))]
    if "model" in parts and config is not None:
        used = tensor_names(_NETWORKS[parts["model"].layout][1](config.unet))
        extra += [name for name in parts["model"].tensors.shapes if name not in used]
    return [name for name in extra if not name.startswith(LEFTOVERS) and not name.endswith(_LEFTOVER_OF_CLIP)]


_NETWORKS = {
    "released": (unet_config_from_shapes, key_table),
    "diffusers": (unet_config_from_diffusers, partial(diffusers_names, temporal=True)),
}
"""Layout of a network -> a function that infers its sizes from shapes, and one that lists its module names."""


def sizes_in(layout: str, shapes: Shapes) -> UNetConfig:
    """Infer the sizes of a network from its tensors' names and shapes in a layout.

    Raises:
        UserError: the network is another one, or has sizes that are not supported.
        KeyError, IndexError, TypeError, ValueError, ZeroDivisionError: tensors are missing or damaged.
    """
    return _NETWORKS[layout][0](shapes)


def save_checkpoint(
    path: str | Path,
    config: Config,
    parts: Mapping[str, Mapping[str, Tensor]],
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a `.safetensors` with the config in its metadata; the file appears complete or not at all. `parts` are the
    tensors by part, for `model` as `to_released` returns them. Floating-point tensors are converted to `dtype`, unless
    it is None."""
    tensors = {f"{part}.{name}": tensor for part, state in parts.items() for name, tensor in state.items()}
    if dtype is not None:
        tensors = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    save_tensors(path, tensors, {**(metadata or {}), "config": config.to_json()})


def _config(
    path: Path, tensors: Tensors, model: Part | None, overrides: Collection[str]
) -> tuple[Config | None, list[str]]:
    """Return the config of a file, and notes on assumed settings. Raises `UserError` if the config is not valid."""
    try:
        if "config" in tensors.metadata:
            return Config.from_json(tensors.metadata["config"]), []
        if CONFIG_TENSOR in tensors.shapes:
            text = tensors.get()(CONFIG_TENSOR).to(torch.uint8).flatten().numpy().tobytes()
            return Config.from_json(text.decode(errors="replace")), []
        if model is None:
            return None, []
        config, note = inferred_config(sizes_in(model.layout, model.tensors.shapes), overrides)
        return config, [note]
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"{path} contains no valid VideoComposer network ({type(error).__name__}: {error}). It is incomplete or "
            "damaged. Download or save it again."
        ) from error
