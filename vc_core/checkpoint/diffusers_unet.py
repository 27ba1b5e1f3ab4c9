"""UNets in diffusers' layout.

Stable Diffusion's UNet2DConditionModel contains this network's spatial layers. ModelScope's UNet3DConditionModel is the
released network without STC-encoders and style.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import count, takewhile
from typing import Any

from torch import nn

from ..config import Config, UNetConfig
from ..errors import UserError
from ..model.unet import kind_of
from .origins import Layout, Shapes
from .released import OVER_TIME, TEMPORAL_CONV, TRANSFORMER, key_table, named_layout

# --- Names ----------------------------------------------------------------------------------------------------------

_TOP = {"time_in": "time_embedding.linear_1", "time_out": "time_embedding.linear_2", "norm_out": "conv_norm_out"}
_SIDES = {"encoder": "down_blocks", "middle": "mid_block", "decoder": "up_blocks"}
# Module of a block -> its name in diffusers, with the block's number, and the names of its submodules that differ.
_LISTS: dict[str, tuple[str, Mapping[str, str]]] = {
    "resnet": ("resnets.{}", {"time_proj": "time_emb_proj", "skip": "conv_shortcut"}),
    "resnet.temporal": ("temp_convs.{}", TEMPORAL_CONV),
    "spatial": ("attentions.{}", TRANSFORMER),
    "temporal": ("temp_attentions.{}", TRANSFORMER),
    "downsample": ("downsamplers.0", {}),
    "upsample": ("upsamplers.0", {}),
}
_PLACE = re.compile(rf"({'|'.join(_SIDES)})\.(\d+)\.(resnet\.temporal|{'|'.join(_LISTS)})\.(.+)")


def diffusers_names(config: UNetConfig, temporal: bool = False) -> dict[str, str]:
    """Return our module names -> the names in UNet2DConditionModel, or with `temporal` in UNet3DConditionModel."""
    kinds = ("spatial", "temporal") if temporal else ("spatial",)
    return {n: _diffusers_name(n, config.res_blocks + 1) for n in key_table(config) if kind_of(f"{n}.") in kinds}


def _diffusers_name(ours: str, blocks: int) -> str:
    """Return diffusers' name of one module; `blocks` is the number of blocks per level."""
    if "." not in ours:
        return _TOP.get(ours, ours)
    if ours.startswith("temporal_in."):
        return f"transformer_in.{TRANSFORMER[ours.removeprefix('temporal_in.')]}"
    ours = re.sub(r"^middle(_out)?\.", lambda out: "middle.1.resnet." if out[1] else "middle.0.", ours)
    side, number, module, inner = _PLACE.match(ours).groups()
    level, block = divmod(int(number), blocks)
    level = "" if side == "middle" else f".{level}"
    theirs, names = _LISTS[module]
    return f"{_SIDES[side]}{level}.{theirs.format(block)}.{names.get(inner, inner)}"


# --- Text-to-video networks -----------------------------------------------------------------------------------------

_HEADS = 8
"""Heads of the first temporal Transformer, fixed by diffusers' class."""


def unet_config_from_diffusers(shapes: Mapping[str, Sequence[int]]) -> UNetConfig:
    """Infer all sizes of the network, the head width included, from tensors under diffusers' names.

    Raises `UserError` for sizes that are not supported, and `KeyError` for missing names.
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
    """Return the layers of a network that UNet3DConditionModel does not have; None if it has all of them."""
    if config.conditions or config.style_tokens or config.stc_channels:
        return "STC-encoders and a style"
    if config.temporal_in_heads != _HEADS:
        return f"{config.temporal_in_heads} heads in the first temporal Transformer, only {_HEADS}"
    return None


def diffusers_layout(unet: nn.Module, file: Shapes) -> Layout:
    """Return where every parameter of a `UNet3D` (which may be on meta) is in diffusers' file. Raises `UserError` for a
    network that diffusers has no class for."""
    if unsupported := no_place(unet.config):
        raise UserError(
            f"The layout diffusers is for text-to-video networks and does not support {unsupported}. Choose the layout "
            "videocomposer or released."
        )
    return named_layout(unet, diffusers_names(unet.config, temporal=True), OVER_TIME)


def diffusers_config(config: Config) -> dict[str, Any]:
    """Return the contents of diffusers' `config.json`, which is next to the file."""
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
