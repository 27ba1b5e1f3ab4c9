"""LoRA files (arXiv 2106.09685) as kohya's scripts, peft, diffusers, LyCORIS and `./vc export` write them: low-rank
changes of a network's weights.

The change of a layer is alpha / rank * up @ down. A key contains the name of the layer's module: ours, the released one
or diffusers', with dots or, in kohya's files, underscores. LoRAs of Stable Diffusion 2.1's UNet work too, because its
layers are this network's spatial layers.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError, counted, reason, shorten
from ..model.unet import UNet3D
from ..parsing import parse_json, read_text
from .diffusers_unet import diffusers_names
from .files import open_tensors
from .origins import Layout, Shape
from .released import key_table, ldm_names
from .tensors import Get, Tensors

DOWN, UP, ALPHA = "lora_down.weight", "lora_up.weight", "alpha"
"""Ends of the keys that `./vc export` writes."""
FEW_STEPS = "few_steps"
"""Key of the metadata of a LoRA that was distilled for few steps; its value is yes."""

# A layer's name, and the end of the key, which says which tensor of the layer it is.
_KEY = re.compile(
    r"(?P<layer>.*?)(?:"
    r"(?P<down>\.lora_down\.weight|\.lora_A(?:\.\w+)?\.weight|(?:[._]lora|\.lora_linear_layer)\.down\.weight)|"
    r"(?P<up>\.lora_up\.weight|\.lora_B(?:\.\w+)?\.weight|(?:[._]lora|\.lora_linear_layer)\.up\.weight)|"
    r"(?P<mid>\.lora_mid\.weight)|"
    r"(?P<alpha>(?:[._]lora)?\.alpha))$",
    re.DOTALL,
)
_OTHER_KINDS = {
    r"\.hada_[wt]\d": "LoHa",
    r"\.lokr_[wt]\d": "LoKr",
    r"\.dora_scale$|\.lora_magnitude_vector": "DoRA",
    r"\.oft_(blocks|diag|R)": "OFT",
    r"\.on_input$": "IA3",
    r"\.lora_E\b": "AdaLoRA",
    r"\.(diff|diff_b|w_norm|b_norm)$": "a file of full weight differences",
}
_PREFIX = re.compile(r"^(?:(?:base_model|model|diffusion_model|unet|lora_unet|lycoris)[._])+")
_OF_TEXT = re.compile(r"^(?:lora_te|lora_prior_te|text_encoder|text_model|te\d?_)")
_PEFT = "base_model.model."
_PEFT_CONFIG = "adapter_config.json"
_DIFFUSERS_CONFIG = "lora_adapter_metadata"


@dataclass(frozen=True)
class LowRank:
    """The change of one layer's weight: `down` is (rank, in, *kernel), `up` (out, rank)."""

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return len(self.down)

    def change(self) -> Tensor:
        """Return the tensor to add to the weight, (out, in * kernel), in float32."""
        return self.alpha / self.rank * self.up.float() @ self.down.float().flatten(1)


@dataclass(frozen=True)
class LoRA:
    """The changes in a file.

    Attributes:
        changes: by our name of the module, in the network's order.
        unmatched: the file's names of layers that the network does not have.
        notes: sentences on other contents of the file that are not used, and on assumptions.
    """

    source: str
    changes: Mapping[str, LowRank]
    unmatched: Sequence[str]
    notes: Sequence[str]


def read_lora(path: str | Path, unet: UNet3D) -> LoRA:
    """Read the changes in a file for a network, which may be on meta.

    For a file of peft, alpha comes from the `adapter_config.json` next to it. Raises `UserError` for a file that cannot
    be read, is of another kind (LoHa, LoKr, DoRA), is incomplete, matches no layer of the network, or has tensors of
    another shape.
    """
    tensors = open_tensors(path)
    for end, kind in _OTHER_KINDS.items():
        if (key := next(filter(re.compile(end).search, tensors.shapes), None)) is not None:
            raise UserError(
                f"{path} is {kind} (key {key}). Only LoRA is supported. Convert it to a LoRA, or merge it into a "
                "checkpoint."
            )
    layers, strays = _layers(tensors)
    modules, weights = _modules(unet), _weights(unet)
    text = [layer for layer in layers if _OF_TEXT.match(_PREFIX.sub("", layer))]
    targets = {layer: modules.get(_plain(layer)) for layer in layers if layer not in text}
    unmatched = [layer for layer, module in targets.items() if module is None]
    matched = {layer: module for layer, module in targets.items() if module is not None}
    if not matched:
        raise UserError(
            f"{path} contains no LoRA for this network. Expected keys such as diffusion_model."
            f"{next(iter(weights))}.{DOWN}, found layers {shorten([*unmatched, *text], 3)}. Use a LoRA of this network."
        )
    notes = [f"{path}: {_not_used(text)}, because they belong to a text encoder."] if text else []
    (alpha_of, alpha_notes), get, changes = _alphas(Path(path), tensors), tensors.get(), {}
    for layer, module in matched.items():
        if module in changes:
            raise UserError(
                f"{path} contains the LoRA of {module} twice, also as {layer}. Save it again with only one."
            )
        changes[module] = _low_rank(tensors, get, layer, layers[layer], weights[module], alpha_of)
    changes = {name: changes[name] for name in weights if name in changes}
    return LoRA(tensors.source, changes, [*unmatched, *strays], [*notes, *alpha_notes])


def is_lora(path: str | Path) -> bool:
    """Return whether a file contains layers of a LoRA. Raises `UserError` if it cannot be read."""
    return any(match and match.lastgroup != "alpha" for match in map(_KEY.match, open_tensors(path).shapes))


def is_distilled(path: str | Path) -> bool:
    """Return whether a LoRA's metadata says that it makes its network one for few steps. Raises `UserError`."""
    return open_tensors(path).metadata.get(FEW_STEPS) == "yes"


def warn_unused(lora: LoRA) -> None:
    """Warn about contents of a file that are not used."""
    notes = list(lora.notes)
    if lora.unmatched:
        notes.append(f"{lora.source}: {_not_used(lora.unmatched)}, because the network does not have them.")
    for note in notes:
        warnings.warn(note, stacklevel=2)


def _not_used(layers: Sequence[str]) -> str:
    return f"The changes of {counted(len(layers), 'layer')} are not used ({shorten(layers, 3)})"


def with_changes(tensors: Tensors, layout: Layout, loras: Sequence[tuple[LoRA, float]]) -> Tensors:
    """Return a network's tensors that add the changes of LoRAs, each times its strength, when a tensor is read. Changed
    tensors are float32 whatever the file's dtype; the mapped file is not written to."""
    changes: dict[str, list[tuple[float, LowRank]]] = {}
    for lora, strength in loras:
        for module, low_rank in lora.changes.items():
            changes.setdefault(layout[f"{module}.weight"].names[0], []).append((strength, low_rank))

    def get() -> Get:
        inner = tensors.get()

        def changed(name: str) -> Tensor:
            weight = inner(name)
            for strength, low_rank in changes.get(name, ()):
                weight = weight.float() + strength * low_rank.change().reshape(weight.shape)
            return weight

        return changed

    return replace(
        tensors,
        dtypes={**tensors.dtypes, **dict.fromkeys(changes, torch.float32)},
        packed={**{name: tensors.dtypes[name] for name in changes}, **tensors.packed},
        get=get,
    )


# --- Names ----------------------------------------------------------------------------------------------------------


def _weights(unet: UNet3D) -> dict[str, Shape]:
    """Return the shapes of matrices and kernels by module."""
    named = ((name, tuple(p.shape)) for name, p in unet.named_parameters() if p.ndim > 1)
    return {name.removesuffix(".weight"): shape for name, shape in named}


def _modules(unet: UNet3D) -> dict[str, str]:
    """Return our module names by all names that files use for them, see `_plain`."""
    released = key_table(unet.config)
    ours = {name: name for name in released}
    tables = (ours, released, ldm_names(unet.config), diffusers_names(unet.config, temporal=True))
    return {_plain(theirs): module for table in reversed(tables) for module, theirs in table.items()}


def _plain(layer: str) -> str:
    """Return a layer's name without the differences between programs: prefixes, dots or underscores, diffusers' old
    processors, and the index 0 of an attention's last matrix, which is followed by a dropout."""
    name = _PREFIX.sub("", layer).replace(".", "_")
    return re.sub(r"to_out_0$", "to_out", name.replace("_processor_", "_"))


def _layers(tensors: Tensors) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Return the keys of a file by the file's layer name and kind, and the keys of unknown kinds. Raises `UserError`
    for a file that is not a LoRA."""
    layers: dict[str, dict[str, str]] = {}
    strays = []
    for key in tensors.shapes:
        if not (match := _KEY.match(key)):
            strays.append(key)
            continue
        layer = match["layer"]
        first = layers.setdefault(layer, {}).setdefault(match.lastgroup, key)
        if first != key:  # for example two adapters of peft
            raise UserError(
                f"{tensors.source} contains the LoRA of {layer} twice ({first}, {key}). Save it again with only one."
            )
    if not layers:
        raise UserError(
            f"{tensors.source} is not a LoRA. Expected keys that end in .{DOWN} and .{UP}, or in .lora_A.weight and "
            f".lora_B.weight, found {shorten(tensors.shapes, 3)}."
        )
    return layers, strays


# --- Alpha ----------------------------------------------------------------------------------------------------------

Alphas = Callable[[str, int], float]
"""A function of the file's layer name and the rank that returns alpha for a layer without its own alpha key."""


def _alphas(path: Path, tensors: Tensors) -> tuple[Alphas, list[str]]:
    """Return alpha from peft's config, which is a file next to this one or, as diffusers saves it, in the metadata; and
    a note if the config is missing."""
    place, text, notes = path, tensors.metadata.get(_DIFFUSERS_CONFIG), []
    lacks_alpha = not any(key.endswith(".alpha") for key in tensors.shapes)
    if not text and lacks_alpha and any(key.startswith(_PEFT) for key in tensors.shapes):
        place = path.with_name(_PEFT_CONFIG)
        if place.is_file():
            text = read_text(place)
        else:
            notes = [f"{path}: Its folder contains no {_PEFT_CONFIG} with alpha, so alpha is set to the rank."]
    try:
        settings = parse_json(text or "{}")
        settings = {key.removeprefix("unet."): value for key, value in settings.items()}
        patterns = {key: float(value) for key, value in (settings.get("alpha_pattern") or {}).items()}
        default = None if settings.get("lora_alpha") is None else float(settings["lora_alpha"])
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{place} contains no valid alpha for the LoRA ({reason(error)}). Save it again.") from error

    def alpha_of(layer: str, rank: int) -> float:
        own = next((value for end, value in patterns.items() if f".{layer}".endswith(f".{end}")), default)
        alpha = rank if own is None else own
        return alpha * math.sqrt(rank) if settings.get("use_rslora") else alpha

    return alpha_of, notes


# --- One layer ------------------------------------------------------------------------------------------------------


def _low_rank(
    tensors: Tensors, get: Get, layer: str, keys: Mapping[str, str], weight: Shape, alpha_of: Alphas
) -> LowRank:
    """Return the change of a layer whose weight has this shape. Raises `UserError` if it does not fit or is
    incomplete."""
    if missing := [kind for kind in ("down", "up") if kind not in keys]:
        raise UserError(
            f"{tensors.source} is incomplete: {layer} has no {' and '.join(missing)} tensor. Save the file again."
        )
    pieces = {kind: get(key) for kind, key in keys.items()}
    down, up, mid = pieces["down"], pieces["up"], pieces.get("mid")
    if mid is not None and mid.ndim > 2 and down.ndim > 1 and mid.shape[1] == len(down):
        # LyCORIS' form for convolutions: 1 x 1, then the kernel at the rank, then 1 x 1.
        down = torch.einsum("ab...,bc->ac...", mid.float(), down.float().flatten(1))
    kernel, shapes = math.prod(weight[2:]), (tuple(down.shape), tuple(up.shape))
    fits = min(map(len, shapes)) > 1 and len(down) > 0
    fits = fits and (down.shape[1], math.prod(down.shape[2:])) == (weight[1], kernel)
    if not fits or (len(up), up.numel()) != (weight[0], weight[0] * len(down)):
        raise UserError(
            f"{tensors.source}: The LoRA of {layer} has shapes {shapes[0]} and {shapes[1]}, but the layer is "
            f"{weight[:2]}{f' with a kernel of {kernel}' if kernel > 1 else ''}. Use a LoRA of this network."
        )
    if "alpha" in pieces and not (pieces["alpha"].numel() == 1 and math.isfinite(pieces["alpha"])):
        raise UserError(f"{tensors.source}: {keys['alpha']} is not one finite number. Download or save the file again.")
    alpha = float(pieces["alpha"]) if "alpha" in pieces else alpha_of(layer, len(down))
    return LowRank(down, up.flatten(1), alpha)
