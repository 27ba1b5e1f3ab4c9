"""The released layout of the 3D UNet: the names in this code and the names in the released files.

The released names (those of Latent Diffusion, with the misspelt `temopral_conv`) and shapes are the file format.
"""

import re
from collections.abc import Mapping

from torch import nn

from ..conditions import CONDITIONS
from ..config import UNetConfig
from ..model.unet import decoder_stages, encoder_stages, kind_of, middle_stage
from .origins import Layout, Origin, part, shapes_of
from .tensors import StateDict

# Our name -> released name, inside one module.
TEMPORAL_CONV = {
    **{f"norms.{i}": f"conv{i + 1}.0" for i in range(4)},
    **{f"convs.{i}": f"conv{i + 1}.{3 if i else 2}" for i in range(4)},  # all except the first follow a dropout
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "skip": "skip_connection",
    **{f"temporal.{ours}": f"temopral_conv.{released}" for ours, released in TEMPORAL_CONV.items()},
}
_ATTENTION = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out": "to_out.0"}
TRANSFORMER = {
    "norm": "norm",
    "proj_in": "proj_in",
    "proj_out": "proj_out",
    **{f"block.norm{i}": f"transformer_blocks.0.norm{i}" for i in (1, 2, 3)},
    **{f"block.attn{i}.{k}": f"transformer_blocks.0.attn{i}.{v}" for i in (1, 2) for k, v in _ATTENTION.items()},
    "block.ff.proj_in": "transformer_blocks.0.ff.net.0.proj",
    "block.ff.proj_out": "transformer_blocks.0.ff.net.2",
}
OVER_TIME = r"\.temporal\.convs\.\d\.weight$"
"""Convolutions over (f, 1, 1) in files, over (f, h w) here."""
_LINEAR = r"(^temporal_in|\.temporal)\.proj_(in|out)\.weight$"
"""1 x 1 convolutions in released files, linear layers here."""
_WITHOUT_BIAS = ("to_q", "to_k", "to_v", "to_qkv")
_STC_STEM = {"conv1": "0", "conv2": "3", "conv3": "5"}
_STC_TEMPORAL = {
    "norm": "layers.0.0.norm",
    "to_qkv": "layers.0.0.fn.to_qkv",
    "to_out": "layers.0.0.fn.to_out.0",
    "ff_in": "layers.0.1.net.0.0",
    "ff_out": "layers.0.1.net.2",
}
_TOP = {
    "time_in": "time_embed.0",
    "time_out": "time_embed.2",
    "style_in": "pre_image_condition.0",
    "style_out": "pre_image_condition.2",
    "conv_in": "input_blocks.0.0",
    "norm_out": "out.0",
    "conv_out": "out.2",
}


def key_table(config: UNetConfig) -> dict[str, str]:
    """Return our module names -> released module names, for every module that has parameters."""
    table = {k: v for k, v in _TOP.items() if config.style_tokens or not k.startswith("style_")}

    def add(ours: str, released: str, inner: Mapping[str, str]) -> None:
        table.update({f"{ours}.{k}": f"{released}.{v}" for k, v in inner.items()})

    for name in config.conditions:
        stem, temporal = CONDITIONS[name].released
        add(f"stc.{name}", stem, _STC_STEM)
        add(f"stc.{name}.temporal", temporal, _STC_TEMPORAL)

    add("temporal_in", "input_blocks.0.1", TRANSFORMER)
    stages = {
        **{f"encoder.{i}": (f"input_blocks.{i + 1}", stage) for i, stage in enumerate(encoder_stages(config))},
        "middle": ("middle_block", middle_stage(config)),
        **{f"decoder.{i}": (f"output_blocks.{i}", stage) for i, stage in enumerate(decoder_stages(config))},
    }
    for ours, (released, stage) in stages.items():
        if stage.resnet:
            same = stage.in_channels == stage.channels
            add(f"{ours}.resnet", f"{released}.0", {k: v for k, v in _RESNET.items() if k != "skip" or not same})
        if stage.attention:
            add(f"{ours}.spatial", f"{released}.1", TRANSFORMER)
            add(f"{ours}.temporal", f"{released}.2", TRANSFORMER)
        if stage.resample and ours.startswith("encoder"):
            table[f"{ours}.downsample.conv"] = f"{released}.op"
        elif stage.resample:
            table[f"{ours}.upsample.conv"] = f"{released}.{3 if stage.attention else 1}.conv"
    add("middle_out", "middle_block.3", {k: v for k, v in _RESNET.items() if k != "skip"})
    return table


def ldm_names(config: UNetConfig) -> dict[str, str]:
    """Return our spatial modules' names -> LDM's names. They are the released names, except for modules after a
    temporal Transformer and for the downsampling, which is inside a sequence in LDM."""
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


def tensor_names(table: Mapping[str, str]) -> set[str]:
    """Return the tensor names of a file with this table of module names."""
    return {
        f"{theirs}.{leaf}"
        for ours, theirs in table.items()
        for leaf in ("weight", "bias")
        if leaf == "weight" or not ours.endswith(_WITHOUT_BIAS)
    }


def released_layout(unet: nn.Module) -> Layout:
    """Return where every parameter of a `UNet3D` (which may be on meta) is in a released file."""
    return named_layout(unet, key_table(unet.config), f"{OVER_TIME}|{_LINEAR}")


def named_layout(unet: nn.Module, names: Mapping[str, str], longer: str) -> Layout:
    """Return where the parameters of a `UNet3D` are in a file with these `names` of its modules.

    `longer`: a pattern of the parameters that have one more dimension, of size 1, in the file.
    """
    layout = {}
    for name, shape in shapes_of(unet).items():
        module, _, leaf = name.rpartition(".")
        if module in names:
            shape = (*shape, 1) if re.search(longer, name) else shape
            layout[name] = Origin((f"{names[module]}.{leaf}",), shape)
    return layout


def to_released(unet: nn.Module) -> StateDict:
    """Return the network's parameters under their released names and shapes (views, no copies)."""
    return part(dict(unet.named_parameters()), released_layout(unet))
