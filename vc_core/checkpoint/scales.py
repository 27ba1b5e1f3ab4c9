"""Scaled weights: numbers of 8 bits with a factor beside them in the file, which are what the network was trained to
only when they are multiplied.

Two spellings are in use, `layer.scale_weight` (ComfyUI's older files, marked by a tensor `scaled_fp8`) and
`layer.weight_scale` (its newer files, marked by `layer.comfy_quant` or in the metadata, and other programs'); also
`weight_scale_inv`, which is a factor too, whatever its name says.
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
"""What stands in place of the last `weight` of a name."""
_OF_ACTIVATIONS = ("scale_input", "input_scale")
"""Beside a weight: what programs multiply inputs by that compute in 8 bits, and nothing to those that do not."""
_MARK, _MARK_OF_LAYER, _MARK_IN_METADATA = "scaled_fp8", "comfy_quant", "_quantization_metadata"
_PLAIN = ("float8_e4m3fn", "float8_e5m2")
"""Formats that are a number of 8 bits times a factor, of those that a mark may name."""
_EIGHT_BITS = tuple(getattr(torch, name) for name in _PLAIN)
_OF_SCALES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""Of 8 bits they are those of MXFP8 and its like, whose order a shape does not tell."""
_BLOCK = 128
"""Side of the blocks that are usual; the last one of a row or column may be cut off."""
_GET = "get the file in fp32, fp16, bf16 or fp8"


def unscaled(tensors: Tensors) -> Tensors:
    """A file's tensors with the scaled ones as what they stand for, in float32, and without scales and marks. Raises
    `UserError` for weights in a format that is not read here, or scales that do not fit them."""
    shapes, dtypes = tensors.shapes, tensors.dtypes
    marks = [name for name in shapes if name.rpartition(".")[2] in (_MARK, _MARK_OF_LAYER)]
    formats = _formats(tensors, marks)
    if foreign := {layer: kind for layer, kind in formats.items() if kind not in _PLAIN}:
        layer, kind = next(iter(foreign.items()))
        raise UserError(
            f"{tensors.source} has {counted(len(foreign), 'layer')} quantised as {kind} ({layer}), which is not read "
            f"here: {_GET}."
        )
    scales: dict[str, str] = {}
    for name in shapes:
        if name.endswith(_WEIGHT) and dtypes[name].is_floating_point:
            beside = (name.removesuffix(_WEIGHT) + end for end in _SCALES)
            if (scale := next(filter(shapes.__contains__, beside), None)) is not None:
                scales[name] = scale
    told = {**formats, **dict.fromkeys(_told_scaled(tensors, marks))}
    if lacking := [layer for layer in told if f"{layer}.{_WEIGHT}" in shapes and f"{layer}.{_WEIGHT}" not in scales]:
        raise UserError(
            f"{tensors.source} lacks the scales of {counted(len(lacking), 'layer')} that it says are scaled "
            f"({lacking[0]}): the file is incomplete; download or save it again."
        )
    inner = tensors.get() if scales else None
    for weight, scale in scales.items():
        if wrong := _wrong(shapes[weight], shapes[scale], dtypes[scale]):
            raise UserError(f"{tensors.source}: the scale {scale} {wrong}: {_GET}.")
        if not inner(scale).float().isfinite().all():
            raise UserError(
                f"{tensors.source}: the scale {scale} is no finite number: the file is damaged; download or save it "
                "again."
            )
    beside = {weight.removesuffix(_WEIGHT) + end for weight in scales for end in _OF_ACTIVATIONS}
    left_out = {*scales.values(), *beside, *marks}
    kept = [name for name in shapes if name not in left_out]
    if len(kept) == len(shapes):
        return tensors

    def get() -> Get:
        inner = tensors.get()
        return lambda name: scaled(inner(name), inner(scales[name])) if name in scales else inner(name)

    return dataclasses.replace(
        tensors,
        shapes={name: shapes[name] for name in kept},
        dtypes={name: torch.float32 if name in scales else dtypes[name] for name in kept},
        get=get,
        metadata={key: value for key, value in tensors.metadata.items() if key != _MARK_IN_METADATA},
        packed={name: dtypes[name] for name in scales},
    )


def scaled(weight: Tensor, scale: Tensor) -> Tensor:
    """A weight times its scale, in float32: one number, one for each row `(N,)`, or for each block, see `blocks`."""
    sides = blocks(tuple(weight.shape), tuple(scale.shape))
    factor = scale.float().reshape([math.ceil(n / max(side, 1)) for n, side in zip(weight.shape, sides, strict=True)])
    for dim, (n, side) in enumerate(zip(weight.shape, sides, strict=True)):
        if 1 < side < n:  # one that is as long as the weight is a single number, which is expanded by multiplying
            factor = factor.repeat_interleave(side, dim).narrow(dim, 0, n)
    return weight.float() * factor


def blocks(weight: Shape, scale: Shape) -> Shape | None:
    """How far each number of a scale reaches along each side of its weight; None where the shapes do not say it."""
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
    """What is wrong with a scale, so that it cannot be read."""
    if blocks(weight, scale) is None:
        return f"{tuple(scale)} does not fit its weight {tuple(weight)}"
    return None if kind in _OF_SCALES else f"is of {str(kind).removeprefix('torch.')}, which is not read here"


def _formats(tensors: Tensors, marks: list[str]) -> dict[str, str]:
    """The formats of layers, as far as marks tell them."""
    told = _json(tensors.metadata.get(_MARK_IN_METADATA, "{}")).get("layers")
    layers = dict(told) if isinstance(told, dict) else {}
    of_layers = [name for name in marks if name.endswith(f".{_MARK_OF_LAYER}")]
    get = tensors.get() if of_layers else None
    for name in of_layers:
        layers[name.rpartition(".")[0]] = _json(get(name).to(torch.uint8).flatten().numpy().tobytes())
    return {layer: str(said.get("format", "?") if isinstance(said, dict) else "?") for layer, said in layers.items()}


def _told_scaled(tensors: Tensors, marks: list[str]) -> list[str]:
    """Layers in 8 bits that have scales as the older marks tell: those below a `scaled_fp8`, or with one for inputs."""
    tops = tuple(name.removesuffix(_MARK) for name in marks if name.endswith(_MARK))
    weights = [name for name, kind in tensors.dtypes.items() if kind in _EIGHT_BITS and len(tensors.shapes[name]) > 1]
    layers = [name.removesuffix(f".{_WEIGHT}") for name in weights if name.endswith(f".{_WEIGHT}")]

    def is_told(layer: str) -> bool:
        return f"{layer}.".startswith(tops) or any(f"{layer}.{end}" in tensors.shapes for end in _OF_ACTIVATIONS)

    return list(filter(is_told, layers))


def _json(text: str | bytes) -> dict[str, Any]:
    try:
        said = parse_json(text)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}
