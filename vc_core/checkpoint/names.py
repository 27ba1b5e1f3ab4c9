"""Names of our modules in the layouts of others: LDM's of Stable Diffusion's 2D UNet, diffusers' of that and of
ModelScope's text-to-video UNet, which is the released network without STC-encoders and style."""

import re
from collections.abc import Mapping

from torch import nn

from ..config import UNetConfig
from .origins import Layout, Origin, shapes_of
from .released import key_table

_BLOCK = {"time_proj": "time_emb_proj", "skip": "conv_shortcut"}
"""Our modules' names inside of a residual block -> diffusers', where they differ."""
_TOP = {"time_in": "time_embedding.linear_1", "time_out": "time_embedding.linear_2", "norm_out": "conv_norm_out"}


def kind_of(name: str) -> str:
    """What a parameter is of, by its name: `stc` or `style`, else `temporal` or `spatial` layers."""
    if name.startswith("stc."):
        return "stc"
    if name.startswith("style_"):
        return "style"
    return "temporal" if re.search(r"(^|\.)temporal(_in)?\.", name) else "spatial"


def ldm_names(config: UNetConfig) -> dict[str, str]:
    """Our spatial modules' names -> LDM's: the released ones, but for what comes after a temporal Transformer, and for
    the downsampling, which is one of a sequence there."""
    table = {}
    for ours, released in key_table(config).items():
        if kind_of(f"{ours}.") == "spatial":
            if ours.startswith("middle_out."):
                released = released.replace("middle_block.3.", "middle_block.2.")
            if ours.endswith(".upsample.conv"):
                released = released.replace(".3.conv", ".2.conv")
            if ours.endswith(".downsample.conv"):
                released = released.replace(".op", ".0.op")
            table[ours] = released
    return table


def diffusers_names(config: UNetConfig, temporal: bool = False) -> dict[str, str]:
    """Our modules' names -> those of diffusers' UNet2DConditionModel; with the temporal layers, of its
    UNet3DConditionModel."""
    there = ldm_names(config)
    if temporal:
        there |= {ours: name for ours, name in key_table(config).items() if kind_of(f"{ours}.") == "temporal"}
    places = {
        "temporal_in": "transformer_in",
        "middle.resnet": "mid_block.resnets.0",
        "middle.resnet.temporal": "mid_block.temp_convs.0",
        "middle.spatial": "mid_block.attentions.0",
        "middle.temporal": "mid_block.temp_attentions.0",
        "middle_out": "mid_block.resnets.1",
        "middle_out.temporal": "mid_block.temp_convs.1",
    }
    for i in range((config.res_blocks + 1) * len(config.multipliers)):
        level, block = divmod(i, config.res_blocks + 1)
        for ours, theirs in ((f"encoder.{i}", f"down_blocks.{level}"), (f"decoder.{i}", f"up_blocks.{level}")):
            places[f"{ours}.resnet"] = f"{theirs}.resnets.{block}"
            places[f"{ours}.resnet.temporal"] = f"{theirs}.temp_convs.{block}"
            places[f"{ours}.spatial"] = f"{theirs}.attentions.{block}"
            places[f"{ours}.temporal"] = f"{theirs}.temp_attentions.{block}"
            places[f"{ours}.downsample"] = f"{theirs}.downsamplers.0"
            places[f"{ours}.upsample"] = f"{theirs}.upsamplers.0"
    table = {ours: _TOP.get(ours, ours) for ours in there if "." not in ours}
    for place, theirs in places.items():
        inside = {
            ours.removeprefix(f"{place}."): name
            for ours, name in there.items()
            if ours.startswith(f"{place}.") and not ours.startswith(f"{place}.temporal.")
        }
        # Inside of Transformers and of convolutions over time LDM's names serve, elsewhere ours.
        start = inside.get("proj_in", inside.get("convs.0", "")).removesuffix("proj_in").removesuffix("conv1.2")
        for inner, name in inside.items():
            table[f"{place}.{inner}"] = f"{theirs}.{name.removeprefix(start) if start else _BLOCK.get(inner, inner)}"
    return table


def named_layout(unet: nn.Module, names: Mapping[str, str]) -> Layout:
    """Where the parameters of those of our modules lie that a file has other names for. Convolutions over (f, 1) are
    such over (f, 1, 1) there."""
    layout = {}
    for name, shape in shapes_of(unet).items():
        module, _, leaf = name.rpartition(".")
        if module in names:
            layout[name] = Origin((f"{names[module]}.{leaf}",), (*shape, 1) if shape[2:] == (3, 1) else shape)
    return layout
