"""What a run begins from, and what of it trains: the 3D network with fresh weights, those of a 2D UNet, or those of a
checkpoint.

Whatever a file lacks stays fresh, and what is fresh starts without effect: residual branches and temporal layers as the
identity, the first convolution's channels for the conditions as zero. So a 3D network made of a 2D one gives, on every
frame, exactly what that gives; and stage 2 begins with exactly the text-to-video model, whatever the conditions.
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
from vc_core.families import assumed, overridden
from vc_core.model.blocks import Attend, attend
from vc_core.model.unet import UNet3D, kind_of
from vc_core.parsing import read_text


@dataclass(frozen=True)
class Started:
    """The network before the first step."""

    unet: UNet3D  # on the CPU in float32; what trains requires gradients
    config: Config  # as its checkpoints will say it
    fresh: tuple[str, ...]  # what the file lacked, in words


def begin(recipe: Recipe, attend: Attend = attend) -> Started:
    """The network that a recipe begins with. Its weights are a function of the recipe and its files alone.

    Raises `UserError` for a file that cannot be read, is of another model or size, or has tensors that have no place;
    and where nothing would be learned, see `choose_parameters`.
    """
    config, part = _source(recipe)
    if config.few_steps:
        warnings.warn(
            f"{recipe.start.checkpoint} was distilled for few steps, of which this training's loss knows nothing: the "
            "more it learns, the worse are videos of few steps. Better train from a network that takes many.",
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
        fresh = [_words(name) for name, _ in unet.named_parameters() if name not in layout]
    choose_parameters(unet, recipe)
    return Started(unet, config, tuple(dict.fromkeys(fresh)))


def initialise(unet: nn.Module) -> None:
    """Makes the residual branches of fresh weights zero, so that every block starts as the identity."""
    for name, module in unet.named_modules():
        last = name.endswith((".conv2", ".proj_out", "temporal.convs.3", "conv_out"))
        if last and not name.startswith("stc.") and ".ff." not in name:
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)


# --- Which parameters train -----------------------------------------------------------------------------------------


def choose_parameters(unet: UNet3D, recipe: Recipe) -> None:
    """Makes what the recipe trains require gradients and nothing else; adds the LoRA.

    In stage 1 there are no conditions, so that STC-encoders and the style's layers rest, where the network has them.
    Raises `UserError` where nothing would be learned: there is nothing of that kind, or nothing that its gradient could
    come from; or where `train.lora_from` is no LoRA for this network.
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
            f"The recipe's train.what {train.what} leaves nothing to train in stage {recipe.stage}: the network has "
            "none of it, or the stage has no use for it; take all."
        )
    if train.what == "stc" and not unet.conv_in.weight[:, unet.config.channels :].any():
        raise UserError(
            "The recipe's train.what stc would learn nothing: the first convolution's weights for the conditions are "
            "zero, as in a network that was not trained on any; take all."
        )


def parameter_groups(unet: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Groups for an optimizer of what requires gradients, each with `name`, `params` and `lr`, none of them empty:
    `temporal` has the temporal layers and the STC-encoders, `spatial` the rest."""
    base, temporal = recipe.optimizer.learning_rate, recipe.optimizer.temporal_learning_rate
    groups = [
        {"name": "spatial", "params": [], "lr": base},
        {"name": "temporal", "params": [], "lr": base if temporal is None else temporal},
    ]
    for name, parameter in unet.named_parameters():
        if parameter.requires_grad:
            groups[kind_of(name) in ("temporal", "stc")]["params"].append(parameter)
    return [group for group in groups if group["params"]]


# --- Files ----------------------------------------------------------------------------------------------------------


def _source(recipe: Recipe) -> tuple[Config, Part | None]:
    """The config that a recipe's files tell, and the network's part of them, in one of `_LAYOUTS`."""
    start = recipe.start
    told = None if start.network is None else _read_config(start.network)
    if start.kind == "scratch":
        return told or Config(), None
    if start.kind == "stable_diffusion":
        return told or Config(), Part("model", start.kind, open_tensors(files_of(start.checkpoint)[0]))
    checkpoint = read_checkpoint(start.checkpoint)
    part = checkpoint.part("model")
    return told or checkpoint.config, part


def _read_config(path: Path) -> Config:
    try:
        text = read_text(path)
    except OSError as error:
        raise UserError(
            f"The recipe's start.network {path} cannot be read ({error.strerror}): give the JSON of a network's config."
        ) from error
    with about(path):
        return Config.from_json(text)


def _config_of(recipe: Recipe, config: Config) -> Config:
    """The config of the network that a recipe trains, of the one that it begins from: stage 2 adds all conditions and
    the style to a network that has none, but for a LoRA, which goes with that network; stage 1 adds none."""
    unet, released = config.unet, UNetConfig()
    if recipe.stage == 2 and recipe.train.what != "lora":
        unet = replace(unet, style_tokens=unet.style_tokens or released.style_tokens)
        if not unet.conditions:
            unet = replace(unet, conditions=released.conditions, stc_channels=released.stc_channels)
            if config.name == assumed(config.unet)[0].name:
                config = replace(config, name=Config.name)  # it is one of text alone no more
    if recipe.stage == 1 and recipe.start.kind in ("scratch", "stable_diffusion"):
        unet = replace(unet, conditions=(), stc_channels=0)
    longest = max(max(domain.lengths or (domain.frames,)) for domain in recipe.data)
    return replace(
        overridden(config, prediction=recipe.loss.prediction, zero_terminal_snr=recipe.loss.zero_terminal_snr or None),
        frames=longest if longest > 1 else config.frames,  # images alone tell nothing of how long its videos are
        height=recipe.height,
        width=recipe.width,
        unet=unet,
    )


def _layout_3d(unet: UNet3D, tensors: Tensors) -> Layout:
    """Where parameters lie in a file under the released names: all but the STC-encoders and the style's layers that it
    has nothing of. ModelScope's text-to-video UNet has VideoComposer's names, without these."""
    whole = released_layout(unet)
    there = {_words(name) for name, origin in whole.items() if origin.names[0] in tensors.shapes}
    layout = {n: o for n, o in whole.items() if _words(n) in there or kind_of(n) not in ("stc", "style")}
    if extra := [name for name in unused(layout, tensors) if not name.startswith(LEFTOVERS)]:
        warnings.warn(f"{tensors.source}: {unused_note(extra)}", stacklevel=2)
    return _first_convolution(layout, unet, tensors)


def _layout_diffusers(unet: UNet3D, tensors: Tensors) -> Layout:
    """Where parameters lie in a file of ModelScope's text-to-video UNet in diffusers' layout."""
    names = diffusers_names(unet.config, temporal=True)
    return _layout_named(unet, tensors, names, "ModelScope's text-to-video UNet")


def _layout_2d(unet: UNet3D, file: Tensors) -> Layout:
    """Where the spatial parameters lie in a file of Stable Diffusion's 2D UNet, of LDM's layout or diffusers'."""
    for markers, names in _KINDS_2D.items():
        prefix = find_prefix(file.shapes, markers)
        if prefix is not None:
            tensors = file.renamed({name: name for name in file.shapes if name.startswith(prefix or _OF_UNET)})
            table = {ours: prefix + theirs for ours, theirs in names(unet.config).items()}
            return _layout_named(unet, tensors, table, "Stable Diffusion 2.1's UNet")
    raise UserError(
        f"{file.source} holds no 2D UNet of Stable Diffusion: expected a checkpoint such as v2-1_512-ema-pruned, or "
        "the UNet's file of diffusers' folder unet."
    )


def _layout_named(unet: UNet3D, tensors: Tensors, names: Mapping[str, str], what: str) -> Layout:
    """Where the parameters of those of our modules lie that a file has other `names` for; `what` names its network."""
    layout = _first_convolution(named_layout(unet, names, OVER_TIME), unet, tensors)
    check(layout, tensors, f"{what} at the network's sizes")
    if extra := unused(layout, tensors):
        raise UserError(
            f"{tensors.source} has {counted(len(extra), 'tensor')} that the network has no place for "
            f"({shorten(extra)}): it is another model than {what}."
        )
    return layout


_LAYOUTS = {"released": _layout_3d, "diffusers": _layout_diffusers, "stable_diffusion": _layout_2d}


def _first_convolution(layout: Layout, unet: UNet3D, tensors: Tensors) -> Layout:
    """The layout, in which the first convolution may be one without channels for the conditions."""
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


def _words(name: str) -> str:
    """What a parameter is of, in words."""
    kind = kind_of(name)
    words = {"stc": f"the STC-encoder of {name.split('.')[1]}", "style": "the style's layers"}
    return words.get(kind, f"the {kind} layers")


_OF_UNET = (
    *("time_emb", "label_emb", "class_emb", "add_emb", "input_blocks.", "middle_block.", "output_blocks.", "out."),
    *("conv_", "down_blocks.", "mid_block.", "up_blocks.", "encoder_hid_proj."),
)
"""Starts of a UNet's names, where nothing stands before them that would tell it from other networks."""
_KINDS_2D = {
    ("out.2.weight", "input_blocks.1.0.in_layers.0.weight"): ldm_names,
    ("conv_norm_out.weight", "down_blocks.0.resnets.0.norm1.weight"): diffusers_names,
}
"""Two names that tell a layout of the 2D UNet, and its names."""
