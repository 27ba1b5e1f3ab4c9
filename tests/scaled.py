"""Checkpoints with scaled weights, as other programs write them."""

import json

import torch

from vc_core.checkpoint.files import open_tensors

FP8 = torch.float8_e4m3fn


def tensorwise(v):
    return v.abs().amax()


def rows(v):
    return v.abs().amax(1)


def columns(v):
    return v.abs().amax(0, keepdim=True)


def row(v):
    return v.abs().amax(1, keepdim=True)


def tiles(v):
    """Return the maximum of every block of 8 x 8."""
    return v.unflatten(1, (-1, 8)).unflatten(0, (-1, 8)).abs().amax((1, 3))


def spans(v):
    """Return the maximum of every 16 numbers of a row, with a last dimension of size 1."""
    return v.unflatten(1, (-1, 16)).abs().amax(2)[..., None]


def expand(scale, shape):
    """Expand a scale to a weight's shape, computed in another way than in `scaled`."""
    if scale.numel() == 1:
        return scale.reshape([1] * len(shape)).expand(shape)
    if scale.ndim == 1:
        return scale.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
    scale = scale.squeeze(-1) if scale.ndim > len(shape) else scale
    return torch.nn.functional.interpolate(scale[None, None], size=shape)[0, 0]


def quantised(source, spelling, kind, marks):
    """Return a checkpoint's tensors with the network's matrices in 8 bits, its metadata, and the original tensors."""
    tensors = open_tensors(source)
    state, out, metadata, layers = tensors.state(), {}, dict(tensors.metadata), {}
    for name, tensor in state.items():
        out[name] = tensor
        if name.startswith("model.") and name.endswith(".weight") and tensor.ndim == 2:
            if kind in (tiles, spans) and any(side % 16 for side in tensor.shape):
                continue
            scale = (kind(tensor) / 448).clamp(min=1e-12).float()
            layer = name.removesuffix(".weight")
            out[name] = (tensor / expand(scale, tensor.shape)).to(FP8)
            out[f"{layer}.{spelling}"] = scale
            layers[layer] = {"format": "float8_e4m3fn"}
            if marks == "tensors":
                text = json.dumps(layers[layer]).encode()
                out[f"{layer}.comfy_quant"] = torch.tensor([*text], dtype=torch.uint8)
                out[f"{layer}.input_scale"] = torch.tensor(3.0)
            if marks == "old":
                out[f"{layer}.scale_input"] = torch.tensor(3.0)
    if marks == "old":
        out["model.scaled_fp8"] = torch.zeros(2, dtype=FP8)
    if marks == "metadata":
        metadata["_quantization_metadata"] = json.dumps({"format_version": "1.0", "layers": layers})
    assert layers
    return out, metadata, state
