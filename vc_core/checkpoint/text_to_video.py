"""ModelScope's text-to-video UNet as diffusers has it: its class UNet3DConditionModel, which is the released network
without STC-encoders and style."""

from collections.abc import Mapping, Sequence
from itertools import count, takewhile
from typing import Any

from torch import nn

from ..config import Config, UNetConfig
from ..errors import UserError
from .names import diffusers_names, named_layout
from .origins import Layout, Shapes

_HEADS = 8
"""Heads of the first temporal Transformer, which the class lets nobody choose."""


def unet_config_from_diffusers(shapes: Mapping[str, Sequence[int]]) -> UNetConfig:
    """The network's sizes, read off tensors under diffusers' names: all of them, the width of a head too.

    Raises `UserError` or `KeyError` for a network that cannot be, or names that are missing.
    """
    firsts = (f"down_blocks.{level}.resnets.0.conv1.weight" for level in count())
    widths = [shapes[name][0] for name in takewhile(shapes.__contains__, firsts)]
    width = shapes["conv_in.weight"][0]
    blocks = takewhile(lambda i: f"down_blocks.0.resnets.{i}.conv1.weight" in shapes, count())
    attention = (i for i in range(len(widths)) if f"down_blocks.{i}.attentions.0.norm.weight" in shapes)
    return UNetConfig(
        channels=shapes["conv_out.weight"][0],
        width=width,
        multipliers=tuple(each // width for each in widths),
        res_blocks=len(list(blocks)),
        attention_levels=tuple(attention),
        head_dim=shapes["transformer_in.proj_in.weight"][0] // _HEADS,
        temporal_in_heads=_HEADS,
        context_dim=shapes["mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"][1],
        style_tokens=0,
        stc_channels=0,
        conditions=(),
    )


def no_place(config: UNetConfig) -> str | None:
    """What of a network UNet3DConditionModel has no place for; None where it has for all of it."""
    if config.conditions or config.style_tokens or config.stc_channels:
        return "STC-encoders and a style"
    if config.temporal_in_heads != _HEADS:
        return f"{config.temporal_in_heads} heads in the first temporal Transformer, which has {_HEADS} there"
    return None


def diffusers_layout(unet: nn.Module, file: Shapes) -> Layout:
    """Where every parameter of a `UNet3D` (which may be on meta) lies in diffusers' file. Raises `UserError` for a
    network that diffusers has no class for."""
    if lacks := no_place(unet.config):
        raise UserError(
            f"The layout diffusers is for networks of text alone, and has no place for {lacks}: choose the layout "
            "videocomposer or released."
        )
    return named_layout(unet, diffusers_names(unet.config, temporal=True))


def diffusers_config(config: Config) -> dict[str, Any]:
    """What diffusers has beside the file as `config.json`."""
    unet = config.unet
    kinds = ["CrossAttn" if level in unet.attention_levels else "" for level in range(len(unet.multipliers))]
    return {
        "_class_name": "UNet3DConditionModel",
        "sample_size": [config.height // 8, config.width // 8],
        "in_channels": unet.channels,
        "out_channels": unet.channels,
        "down_block_types": [f"{kind}DownBlock3D" for kind in kinds],
        "up_block_types": [f"{kind}UpBlock3D" for kind in reversed(kinds)],
        "block_out_channels": [unet.width * multiplier for multiplier in unet.multipliers],
        "layers_per_block": unet.res_blocks,
        "cross_attention_dim": unet.context_dim,
        "attention_head_dim": unet.head_dim,
    }
