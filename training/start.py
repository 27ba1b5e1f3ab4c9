"""The initial network of a run, and which of its parameters train. The weights are new, from a 2D UNet, or from a
checkpoint.

Parameters that a file does not contain are new, and start without effect: residual branches and temporal layers as the
identity, the first convolution's channels for conditions as zero. So a 3D network from a 2D one computes the same as
the 2D one on every frame, and stage 2 starts as exactly the text-to-video model, whatever the conditions.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from training.lora import add_lora, load_lora
from training.recipe import Recipe
from vc_core.checkpoint.diffusers_unet import diffusers_names
from vc_core.checkpoint.files import files_of, open_tensors
from vc_core.checkpoint.formats import find_prefix
from vc_core.checkpoint.origins import Layout, Origin, check, unused, unused_note
from vc_core.checkpoint.reading import LEFTOVERS, Part, read_checkpoint
from vc_core.checkpoint.released import OVER_TIME, ldm_names, named_layout, released_layout
from vc_core.checkpoint.tensors import Tensors
from vc_core.config import Config, UNetConfig
from vc_core.errors import UserError, about, counted, shorten
from vc_core.families import inferred_config, overridden
from vc_core.model.blocks import Attend, attend
from vc_core.model.unet import UNet3D, kind_of
from vc_core.parsing import read_text
from vc_core.published import MODELS


@dataclass(frozen=True)
class Started:
    """The network before the first step."""

    unet: UNet3D  # on the CPU in float32; parameters to train require gradients
    config: Config  # config for its checkpoints
    fresh: tuple[str, ...]  # descriptions of the layers with new weights
    guidance: float  # default guidance scale of the network that it starts from


def begin(recipe: Recipe, attend: Attend = attend) -> Started:
    """Create the network that a recipe starts with. Its weights depend only on the recipe and its files.

    Raises `UserError` if a file cannot be read, is from another model or size, or has tensors that do not belong to the
    network; and if nothing would be learned, see `choose_parameters`.
    """
    config, part = _source(recipe)
    guidance = config.guidance
    if config.few_steps and recipe.distils:
        raise UserError(
            f"{recipe.start.checkpoint} was distilled for few sampling steps already, so it cannot be the teacher of "
            "loss.kind consistency. Start from the checkpoint that it was distilled from."
        )
    if config.few_steps:
        warnings.warn(
            f"{recipe.start.checkpoint} was distilled for few sampling steps, but this training does not preserve "
            "that: videos with few steps get worse the longer it trains. Start from another checkpoint.",
            stacklevel=2,
        )
    config = _config_of(recipe, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        unet = UNet3D(config.unet, attend=attend)
        initialise(unet)
    fresh = ["everything"]
    if part is not None:
        layout = _LAYOUTS[part.layout](unet, part.tensors)
        _fill(unet, layout, part.tensors)
        fresh = [_described(name) for name, _ in unet.named_parameters() if name not in layout]
    choose_parameters(unet, recipe)
    return Started(unet, config, tuple(dict.fromkeys(fresh)), guidance)


def initialise(unet: nn.Module) -> None:
    """Set the residual branches of new weights to zero, so that every block starts as the identity."""
    for name, module in unet.named_modules():
        last = name.endswith((".conv2", ".proj_out", "temporal.convs.3", "conv_out"))
        if last and not name.startswith("stc.") and ".ff." not in name:
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)


# --- Which parameters train -----------------------------------------------------------------------------------------


def choose_parameters(unet: UNet3D, recipe: Recipe) -> None:
    """Make exactly the parameters that the recipe trains require gradients; add the LoRA.

    Stage 1 uses no conditions, so STC-encoders and style layers stay frozen if the network has them. Raises `UserError`
    if nothing would be learned, because there are no such parameters or they get no gradient; and if `train.lora_from`
    is not a LoRA for this network.
    """
    train = recipe.train
    if train.what != "lora":
        for name, parameter in unet.named_parameters():
            parameter.requires_grad_(train.what in ("all", kind_of(name)))
    elif train.lora_from is not None:
        load_lora(unet, train.lora_from)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            add_lora(unet, train.lora_rank, train.lora_alpha, train.lora_on)
    if recipe.stage == 1:
        for name, parameter in unet.named_parameters():
            if kind_of(name) in ("stc", "style"):
                parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in unet.parameters()):
        raise UserError(
            f"Recipe key train.what is {train.what}, which leaves nothing to train in stage {recipe.stage}: the "
            "network has no such layers, or the stage does not use them. Set train.what to all."
        )
    if train.what == "stc" and not unet.conv_in.weight[:, unet.config.channels :].any():
        raise UserError(
            "Recipe key train.what is stc, which would learn nothing: the first convolution's weights for conditions "
            "are zero, because the network was never trained with conditions. Set train.what to all."
        )


def parameter_groups(parameters: Mapping[str, nn.Parameter], recipe: Recipe) -> list[dict[str, Any]]:
    """Return non-empty optimizer groups of all parameters that require gradients, by their names in the network, each
    with `name`, `params` and `lr`. `temporal` has the temporal layers and the STC-encoders, `spatial` the rest."""
    base, temporal = recipe.optimizer.learning_rate, recipe.optimizer.temporal_learning_rate
    groups = [
        {"name": "spatial", "params": [], "lr": base},
        {"name": "temporal", "params": [], "lr": base if temporal is None else temporal},
    ]
    for name, parameter in parameters.items():
        if parameter.requires_grad:
            groups[kind_of(name) in ("temporal", "stc")]["params"].append(parameter)
    return [group for group in groups if group["params"]]


# --- Files ----------------------------------------------------------------------------------------------------------


def check_downloads(recipe: Recipe) -> None:
    """Raise `UserError` if a published file of the recipe is missing; the message has the command that downloads it."""
    published = {Path(model.name).name: model.name for model in MODELS}
    for path in filter(None, (recipe.start.checkpoint, *recipe.start.parts)):
        if path.name in published and not path.exists():
            raise UserError(
                f"There is no file {path}. Download it with ./vc get --to {path.parent} {published[path.name]}, or use "
                "another file. For the bundled checkpoint, set --start.checkpoint bundled --start.parts."
            )


def _source(recipe: Recipe) -> tuple[Config, Part | None]:
    """Return the config from a recipe's files, and the network's part of them, in one of `_LAYOUTS`."""
    start = recipe.start
    config = None if start.network is None else _read_config(start.network)
    if start.kind == "scratch":
        return config or Config(), None
    if start.kind == "stable_diffusion":
        return config or Config(), Part("model", start.kind, open_tensors(files_of(start.checkpoint)[0]))
    checkpoint = read_checkpoint(start.checkpoint)
    part = checkpoint.part("model")
    return config or checkpoint.config, part


def _read_config(path: Path) -> Config:
    try:
        text = read_text(path)
    except OSError as error:
        raise UserError(
            f"Cannot read {path}, which the recipe names as start.network ({error.strerror}). Set start.network to a "
            "JSON file with a network's config."
        ) from error
    with about(path):
        return Config.from_json(text)


def _config_of(recipe: Recipe, config: Config) -> Config:
    """Return the config of the trained network, from the config that it starts with. Stage 2 adds all conditions and
    style to a network without them, except for a LoRA or a distillation, which must match the original network. Stage 1
    adds none."""
    unet, released = config.unet, UNetConfig()
    if recipe.stage == 2 and recipe.train.what != "lora" and not recipe.distils:
        unet = replace(unet, style_tokens=unet.style_tokens or released.style_tokens)
        if not unet.conditions:
            unet = replace(unet, conditions=released.conditions, stc_channels=released.stc_channels)
            if config.name == inferred_config(config.unet)[0].name:
                config = replace(config, name=Config.name)  # no longer a text-only network
    if recipe.stage == 1 and recipe.start.kind in ("scratch", "stable_diffusion"):
        unet = replace(unet, conditions=(), stc_channels=0)
    longest = max(max(domain.lengths or (domain.frames,)) for domain in recipe.data)
    return replace(
        overridden(
            config,
            prediction=recipe.loss.prediction,
            zero_terminal_snr=recipe.loss.zero_terminal_snr or None,
            few_steps=recipe.distils or None,
        ),
        frames=longest if longest > 1 else config.frames,  # image-only training does not set a video length
        height=recipe.height,
        width=recipe.width,
        unet=unet,
    )


def _layout_3d(unet: UNet3D, tensors: Tensors) -> Layout:
    """Map parameters to a file with the released names. STC-encoders and style layers may be missing: ModelScope's
    text-to-video UNet has VideoComposer's names, without these."""
    full = released_layout(unet)
    available = {_described(name) for name, origin in full.items() if origin.names[0] in tensors.shapes}
    layout = {n: o for n, o in full.items() if _described(n) in available or kind_of(n) not in ("stc", "style")}
    if extra := [name for name in unused(layout, tensors) if not name.startswith(LEFTOVERS)]:
        warnings.warn(f"{tensors.source}: {unused_note(extra)}", stacklevel=2)
    return _first_convolution(layout, unet, tensors)


def _layout_diffusers(unet: UNet3D, tensors: Tensors) -> Layout:
    """Map parameters to a file of ModelScope's text-to-video UNet in diffusers' layout."""
    names = diffusers_names(unet.config, temporal=True)
    return _layout_named(unet, tensors, names, "ModelScope's text-to-video UNet")


def _layout_2d(unet: UNet3D, file: Tensors) -> Layout:
    """Map the spatial parameters to a file of Stable Diffusion's 2D UNet, in LDM's layout or diffusers'."""
    for markers, names in _KINDS_2D.items():
        prefix = find_prefix(file.shapes, markers)
        if prefix is not None:
            tensors = file.renamed({name: name for name in file.shapes if name.startswith(prefix or _OF_UNET)})
            table = {ours: prefix + theirs for ours, theirs in names(unet.config).items()}
            return _layout_named(unet, tensors, table, "Stable Diffusion 2.1's UNet")
    raise UserError(
        f"{file.source} contains no 2D UNet of Stable Diffusion. Pass a checkpoint such as v2-1_512-ema-pruned, or the "
        "UNet's file from the folder unet of a diffusers model."
    )


def _layout_named(unet: UNet3D, tensors: Tensors, names: Mapping[str, str], what: str) -> Layout:
    """Map the parameters of the modules in `names` to a file that uses those names; `what` describes its network."""
    layout = _first_convolution(named_layout(unet, names, OVER_TIME), unet, tensors)
    check(layout, tensors, f"{what} at the network's sizes")
    if extra := unused(layout, tensors):
        raise UserError(
            f"Expected {what}, but {tensors.source} contains {counted(len(extra), 'tensor')} of another model "
            f"({shorten(extra)}). Pass another file."
        )
    return layout


_LAYOUTS = {"released": _layout_3d, "diffusers": _layout_diffusers, "stable_diffusion": _layout_2d}


def _first_convolution(layout: Layout, unet: UNet3D, tensors: Tensors) -> Layout:
    """Return the layout, adjusted if the file's first convolution has no channels for conditions."""
    origin, channels = layout["conv_in.weight"], unet.config.channels
    if tensors.shapes.get(origin.names[0], (0, 0))[1] != channels:
        return layout
    return {**layout, "conv_in.weight": Origin(origin.names, (origin.shape[0], channels, *origin.shape[2:]))}


@torch.no_grad()
def _fill(unet: UNet3D, layout: Layout, tensors: Tensors) -> None:
    check(layout, tensors, "the network that the recipe trains")
    get = tensors.get()
    for name, origin in layout.items():
        parameter = unet.get_parameter(name)
        if name == "conv_in.weight":
            parameter[:, origin.shape[1] :] = 0.0
            parameter = parameter[:, : origin.shape[1]]
        parameter.copy_(origin.join(get, tuple(parameter.shape)))


def _described(name: str) -> str:
    """Describe the layers that a parameter belongs to."""
    kind = kind_of(name)
    words = {"stc": f"the STC-encoder of {name.split('.')[1]}", "style": "the style's layers"}
    return words.get(kind, f"the {kind} layers")


_OF_UNET = (
    *("time_emb", "label_emb", "class_emb", "add_emb", "input_blocks.", "middle_block.", "output_blocks.", "out."),
    *("conv_", "down_blocks.", "mid_block.", "up_blocks.", "encoder_hid_proj."),
)
"""Prefixes of a UNet's names, in a file where no common prefix distinguishes it from other networks."""
_KINDS_2D = {
    ("out.2.weight", "input_blocks.1.0.in_layers.0.weight"): ldm_names,
    ("conv_norm_out.weight", "down_blocks.0.resnets.0.norm1.weight"): diffusers_names,
}
"""Two names that identify a layout of the 2D UNet -> its table of names."""
