"""Scaled weights: 8-bit numbers with a separate factor in the file. The network's weights are their products.

Two spellings are in use: `layer.scale_weight` (ComfyUI's older files, marked by a tensor `scaled_fp8`) and
`layer.weight_scale` (its newer files, marked by `layer.comfy_quant` or in the metadata, and files of other programs).
`weight_scale_inv` is a factor too, despite its name.
"""

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError, counted
from ..parsing import parse_json
from .tensors import Get, Tensors

Shape = tuple[int, ...]

_WEIGHT = "weight"
_SCALES = ("scale_weight", "weight_scale", "weight_scale_inv")
"""Ends of a scale's name, in place of the weight's `weight`."""
_OF_ACTIVATIONS = ("scale_input", "input_scale")
"""Scales of a layer's inputs, which only programs that compute in 8 bits use."""
_MARK, _MARK_OF_LAYER, _MARK_IN_METADATA = "scaled_fp8", "comfy_quant", "_quantization_metadata"
_PLAIN = ("float8_e4m3fn", "float8_e5m2")
"""Marked formats that store an 8-bit number times a factor."""
_EIGHT_BITS = tuple(getattr(torch, name) for name in _PLAIN)
_OF_SCALES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""8-bit scales belong to MXFP8 and similar formats, and their order cannot be inferred from the shape."""
_BLOCK = 128
"""The usual side of blocks; the last block of a row or column may be smaller."""
_ADVICE = "Use a file in fp32, fp16, bf16 or fp8"


def unscaled(tensors: Tensors) -> Tensors:
    """Return a file's tensors with scaled weights multiplied, in float32, and without scales and marks. Raises
    `UserError` for a format that is not supported, or scales that do not fit their weights."""
    shapes, dtypes = tensors.shapes, tensors.dtypes
    marks = [name for name in shapes if name.rpartition(".")[2] in (_MARK, _MARK_OF_LAYER)]
    formats = _formats(tensors, marks)
    if foreign := {layer: kind for layer, kind in formats.items() if kind not in _PLAIN}:
        layer, kind = next(iter(foreign.items()))
        raise UserError(
            f"{tensors.source} has {counted(len(foreign), 'layer')} quantised as {kind} ({layer}), which is not "
            f"supported. {_ADVICE}."
        )
    scales: dict[str, str] = {}
    for name in shapes:
        if name.endswith(_WEIGHT) and dtypes[name].is_floating_point:
            candidates = (name.removesuffix(_WEIGHT) + end for end in _SCALES)
            if (scale := next(filter(shapes.__contains__, candidates), None)) is not None:
                scales[name] = scale
    layers = dict.fromkeys([*formats, *_marked_layers(tensors, marks)])
    if missing := [layer for layer in layers if f"{layer}.{_WEIGHT}" in shapes and f"{layer}.{_WEIGHT}" not in scales]:
        raise UserError(
            f"{tensors.source} is incomplete: the scales of {counted(len(missing), 'layer')} are missing "
            f"({missing[0]}). Download or save the file again."
        )
    inner = tensors.get() if scales else None
    for weight, scale in scales.items():
        if wrong := _wrong(shapes[weight], shapes[scale], dtypes[scale]):
            raise UserError(f"{tensors.source}: The scale {scale} {wrong}. {_ADVICE}.")
        if not inner(scale).float().isfinite().all():
            raise UserError(
                f"{tensors.source}: The scale {scale} contains NaN or infinity, so the file is damaged. Download or "
                "save it again."
            )
    of_activations = {weight.removesuffix(_WEIGHT) + end for weight in scales for end in _OF_ACTIVATIONS}
    left_out = {*scales.values(), *of_activations, *marks}
    remaining = [name for name in shapes if name not in left_out]
    if len(remaining) == len(shapes):
        return tensors

    def get() -> Get:
        inner = tensors.get()
        return lambda name: scaled(inner(name), inner(scales[name])) if name in scales else inner(name)

    return dataclasses.replace(
        tensors,
        shapes={name: shapes[name] for name in remaining},
        dtypes={name: torch.float32 if name in scales else dtypes[name] for name in remaining},
        get=get,
        metadata={key: value for key, value in tensors.metadata.items() if key != _MARK_IN_METADATA},
        packed={name: dtypes[name] for name in scales},
    )


def scaled(weight: Tensor, scale: Tensor) -> Tensor:
    """Return a weight times its scale, in float32. A scale is one number, one per row `(N,)`, or one per block, see
    `blocks`."""
    sides = blocks(tuple(weight.shape), tuple(scale.shape))
    factor = scale.float().reshape([math.ceil(n / max(side, 1)) for n, side in zip(weight.shape, sides, strict=True)])
    for dim, (n, side) in enumerate(zip(weight.shape, sides, strict=True)):
        if 1 < side < n:  # a block as long as the weight has a single number, which broadcasting expands
            factor = factor.repeat_interleave(side, dim).narrow(dim, 0, n)
    return weight.float() * factor


def blocks(weight: Shape, scale: Shape) -> Shape | None:
    """Return the size of the block that each number of a scale applies to; None if the shapes do not fit."""
    if math.prod(scale) == 1:
        return weight
    if len(scale) == 1 and weight and scale[0] == weight[0]:
        return 1, *weight[1:]
    if len(scale) == len(weight) + 1 and scale[-1] == 1:  # (N, blocks of a row, 1)
        scale = scale[:-1]
    if len(scale) != len(weight):
        return None
    sides = []
    for n, count in zip(weight, scale, strict=True):
        usual = count > 1 and count == math.ceil(n / _BLOCK)
        if not usual and (count == 0 or n % count):
            return None
        sides.append(_BLOCK if usual else n // count)
    return tuple(sides)


def _wrong(weight: Shape, scale: Shape, kind: torch.dtype) -> str | None:
    """Return why a scale cannot be used, to follow its name in a message; None if it can."""
    if blocks(weight, scale) is None:
        return f"has shape {tuple(scale)}, which does not fit its weight {tuple(weight)}"
    return None if kind in _OF_SCALES else f"has dtype {str(kind).removeprefix('torch.')}, which is not supported"


def _formats(tensors: Tensors, marks: list[str]) -> dict[str, str]:
    """Return the formats of layers that have marks."""
    entries = _json(tensors.metadata.get(_MARK_IN_METADATA, "{}")).get("layers")
    layers = dict(entries) if isinstance(entries, dict) else {}
    of_layers = [name for name in marks if name.endswith(f".{_MARK_OF_LAYER}")]
    get = tensors.get() if of_layers else None
    for name in of_layers:
        layers[name.rpartition(".")[0]] = _json(get(name).to(torch.uint8).flatten().numpy().tobytes())
    return {layer: str(mark.get("format", "?") if isinstance(mark, dict) else "?") for layer, mark in layers.items()}


def _marked_layers(tensors: Tensors, marks: list[str]) -> list[str]:
    """Return the 8-bit layers that must have scales by the older marks: those below a `scaled_fp8`, or with a scale for
    their inputs."""
    tops = tuple(name.removesuffix(_MARK) for name in marks if name.endswith(_MARK))
    weights = [name for name, kind in tensors.dtypes.items() if kind in _EIGHT_BITS and len(tensors.shapes[name]) > 1]
    layers = [name.removesuffix(f".{_WEIGHT}") for name in weights if name.endswith(f".{_WEIGHT}")]

    def is_marked(layer: str) -> bool:
        return f"{layer}.".startswith(tops) or any(f"{layer}.{end}" in tensors.shapes for end in _OF_ACTIVATIONS)

    return list(filter(is_marked, layers))


def _json(text: str | bytes) -> dict[str, Any]:
    try:
        value = parse_json(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
