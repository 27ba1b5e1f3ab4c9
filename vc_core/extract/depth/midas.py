"""MiDaS v3 (DPT-Large), the depth network of the released pipeline, as transformers' DPT.

The released file, `midas_v3_dpt_large.pth`, contains the same network as the public folder `Intel/dpt-large`, with
other key names, and with query, key and value in one tensor. This module renames its keys to the folder's names, which
every version of transformers can read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from ...checkpoint.origins import Layout, Origin, check
from ...checkpoint.tensors import StateDict, Tensors

_STAGES = range(1, 5)
_MARKS = {
    *("cls_embedding", "pos_embedding", "patch_embedding.weight", "blocks.0.attn.to_qkv.weight", "conv1.2.weight"),
    *(f"conv{stage}.0.weight" for stage in _STAGES),
}
_HEAD_WIDTH = 64


def is_midas(tensors: Tensors) -> bool:
    """Whether these tensors are the released MiDaS, judged by their names."""
    return tensors.shapes.keys() >= _MARKS


def midas_config(tensors: Tensors, head_width: int = _HEAD_WIDTH) -> dict[str, Any]:
    """The settings of transformers' `DPTConfig`, from the shapes; they do not show the width of attention heads."""
    shapes = tensors.shapes
    width, _, _, patch = shapes["patch_embedding.weight"]
    layers = _layers(tensors)
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // head_width,
        "patch_size": patch,
        "image_size": patch * math.isqrt(shapes["pos_embedding"][1] - 1),
        "layer_norm_eps": 1e-5,  # as released; transformers' default differs
        "backbone_out_indices": [layers * stage // 4 - 1 for stage in _STAGES],
        "neck_hidden_sizes": [shapes[f"conv{stage}.0.weight"][0] for stage in _STAGES],
        "fusion_hidden_size": shapes["conv1.2.weight"][0],
    }


def midas_state(tensors: Tensors) -> StateDict:
    """The parameters with the names of `Intel/dpt-large`: views, not copies.

    Raises:
        UserError: some are missing or not floating point.
    """
    layout = _layout(tensors)
    check(layout, tensors, "MiDaS v3")
    get, state = tensors.get(), {}
    for name, origin in layout.items():
        tensor = origin.join(get, origin.shape)
        if "{}" in name:
            state |= zip((name.format(part) for part in ("query", "key", "value")), tensor.chunk(3), strict=False)
        else:
            state[name] = tensor
    # A transposed 1x1 convolution equals a plain one with swapped channels.
    state["head.head.4.weight"] = state["head.head.4.weight"].transpose(0, 1)
    return state


_BOTH = ("weight", "bias")
_EACH_LAYER = {
    "layernorm_before": "norm1",
    "attention.attention.{}": "attn.to_qkv",
    "attention.output.dense": "attn.proj",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.0",
    "output.dense": "mlp.2",
}


def _layout(tensors: Tensors) -> Layout:
    """Public name -> where it is in the file. Shapes are the file's; transformers compares them with its own."""
    layout = {}
    for ours, released, kinds in _modules(_layers(tensors)):
        for kind in kinds:
            name = f"{released}{kind and '.' + kind}"
            layout[f"{ours}{kind and '.' + kind}"] = Origin((name,), tensors.shapes.get(name, ()))
    return layout


def _modules(layers: int) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Public and released names of the modules, and their parameters; "" if the name is a parameter's itself."""
    yield "dpt.embeddings.cls_token", "cls_embedding", ("",)
    yield "dpt.embeddings.position_embeddings", "pos_embedding", ("",)
    yield "dpt.embeddings.patch_embeddings.projection", "patch_embedding", _BOTH
    for layer in range(layers):
        for ours, released in _EACH_LAYER.items():
            yield f"dpt.encoder.layer.{layer}.{ours}", f"blocks.{layer}.{released}", _BOTH
    for stage in _STAGES:
        reassembled, resized = "neck.reassemble_stage", stage != 3  # the third stage already has the right size
        yield f"{reassembled}.readout_projects.{stage - 1}.0", f"fc{stage}.0", _BOTH
        yield f"{reassembled}.layers.{stage - 1}.projection", f"conv{stage}.0", _BOTH
        if resized:
            yield f"{reassembled}.layers.{stage - 1}.resize", f"conv{stage}.1", _BOTH
        yield f"neck.convs.{stage - 1}", f"conv{stage}.{1 + resized}", ("weight",)
        fusion = f"neck.fusion_stage.layers.{4 - stage}"  # counted from the coarsest
        for unit in (1, 2):
            for number, place in ((1, 1), (2, 3)):
                ours = f"{fusion}.residual_layer{unit}.convolution{number}"
                yield ours, f"fusion{stage}.layer{unit}.residual.{place}", _BOTH
        yield f"{fusion}.projection", f"fusion{stage}.conv_out", _BOTH
    for place in (0, 2, 4):
        yield f"head.head.{place}", f"head.{place}", _BOTH


def _layers(tensors: Tensors) -> int:
    numbers = {name.split(".")[1] for name in tensors.shapes if name.startswith("blocks.")}
    return 1 + max((int(number) for number in numbers if number.isdecimal()), default=-1)
