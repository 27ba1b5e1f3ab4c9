"""LoRA (arXiv 2106.09685): low-rank changes of linear layers, in files that ComfyUI's stock loader reads.

A layer's change is alpha / rank * up @ down. In a file its tensors are `diffusion_model.<module>.lora_down.weight`,
`.lora_up.weight` and `.alpha`, with the module names of `vc_core.model.unet.UNet3D`, which the nodes' MODEL uses too.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vc_core.checkpoint.files import save_tensors
from vc_core.checkpoint.loading import on_meta
from vc_core.checkpoint.lora import ALPHA, DOWN, UP, read_lora, warn_unused
from vc_core.checkpoint.tensors import StateDict
from vc_core.config import Config
from vc_core.errors import UserError, counted, shorten
from vc_core.model.unet import UNet3D

PREFIX = "diffusion_model."


class LoRALinear(nn.Linear):
    """A frozen linear layer with a low-rank change. It is not a wrapper, so weight and bias keep their names."""

    def __init__(self, layer: nn.Linear, rank: int, alpha: float):
        weight = layer.weight
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.weight, self.bias = weight, layer.bias
        self.alpha, self.scale = alpha, alpha / rank
        self.lora_down = nn.Linear(layer.in_features, rank, bias=False, device=weight.device, dtype=weight.dtype)
        self.lora_up = nn.Linear(rank, layer.out_features, bias=False, device=weight.device, dtype=weight.dtype)
        if not weight.is_meta:
            nn.init.kaiming_uniform_(self.lora_down.weight, a=math.sqrt(5))
            nn.init.zeros_(self.lora_up.weight)  # so that the change starts at zero
        self.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias) + self.scale * self.lora_up(self.lora_down(x))

    def change(self) -> Tensor:
        """Return the change of the weight, `(out, in)`."""
        return self.scale * self.lora_up.weight @ self.lora_down.weight


def lora_layers(unet: nn.Module) -> dict[str, LoRALinear]:
    """Return the layers that have a LoRA, by name."""
    return {name: module for name, module in unet.named_modules() if isinstance(module, LoRALinear)}


def alphas_of(unet: nn.Module) -> dict[str, float]:
    """Return the alpha of each layer's LoRA: its scale times its rank."""
    return {name: layer.alpha for name, layer in lora_layers(unet).items()}


def add_lora(unet: nn.Module, rank: int, alpha: float | None, on: Collection[str]) -> list[str]:
    """Add a LoRA to each linear layer whose name contains an item of `on`, and freeze everything else.

    Returns the layers' names. `alpha` None is the rank, so that the change is up @ down. Raises `UserError` if an item
    of `on` matches no layer, or the network already has LoRAs.
    """
    linear = _linear(unet)
    if unmatched := [part for part in on if not any(part in name for name in linear)]:
        inner = ([part for part in name.split(".")[1:-1] if not part.isdigit()] for name in linear)
        examples = sorted({".".join(parts) for parts in inner if parts})
        raise UserError(
            f"Recipe key train.lora_on contains {', '.join(unmatched)}, but no name of a linear layer contains it. "
            f"Expected parts of names, such as {shorten(examples, 12)}."
        )
    if not on:
        raise UserError("Recipe key train.lora_on is empty. Add parts of module names, for example spatial.block.")
    alpha, names = rank if alpha is None else alpha, [name for name in linear if any(part in name for part in on)]
    _insert(unet, {name: LoRALinear(linear[name], rank, alpha) for name in names}, "adding another one")
    return names


def load_lora(unet: UNet3D, path: str | Path) -> list[str]:
    """Add the LoRAs of a file to their layers, to continue their training or to merge them. Returns the layers' names.

    `vc_core.checkpoint.lora` lists the accepted key names. Raises `UserError` if a key matches no linear layer of the
    network, if half of a pair is missing, or if a shape is wrong; warns about keys of text encoders.
    """
    lora, linear = read_lora(path, unet), _linear(unet)
    if unmatched := [*lora.unmatched, *(name for name in lora.changes if name not in linear)]:
        what = counted(len(unmatched), "layer that is not a linear layer", "layers that are not linear layers")
        raise UserError(
            f"{path} changes {what} of the network ({shorten(unmatched)}). Training supports only linear layers. Pass "
            "a LoRA for those."
        )
    warn_unused(lora)
    layers = {name: LoRALinear(linear[name], low.rank, low.alpha) for name, low in lora.changes.items()}
    with torch.no_grad():
        for name, low in lora.changes.items():
            layers[name].lora_down.weight.copy_(low.down.flatten(1))
            layers[name].lora_up.weight.copy_(low.up)
    _insert(unet, layers, f"loading {path}")
    return list(layers)


def _linear(unet: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in unet.named_modules() if isinstance(module, nn.Linear)}


def _insert(unet: nn.Module, layers: Mapping[str, LoRALinear], action: str) -> None:
    """Replace layers by layers with a LoRA, and freeze all other weights."""
    if existing := lora_layers(unet):
        raise UserError(f"The network already has a LoRA on {shorten(existing)}. Merge it before {action}.")
    unet.requires_grad_(False)
    for name, layer in layers.items():
        unet.set_submodule(name, layer)


def network_of(config: Config, weights: Mapping[str, Tensor], alphas: Mapping[str, float]) -> UNet3D:
    """Build the network of a config with these weights, which must be complete and are not copied.

    The layers in `alphas`, see `alphas_of`, get a LoRA with the rank of its weights.
    """
    unet = on_meta(config)
    for name, alpha in alphas.items():
        unet.set_submodule(name, LoRALinear(unet.get_submodule(name), len(weights[f"{name}.{DOWN}"]), alpha))
    unet.load_state_dict(weights, assign=True)
    return unet


@torch.no_grad()
def merge_lora(unet: nn.Module) -> None:
    """Add each LoRA to its layer's weight, and replace the layer by a plain one."""
    for name, layer in lora_layers(unet).items():
        plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        layer.weight += layer.change()
        plain.weight, plain.bias = layer.weight, layer.bias
        unet.set_submodule(name, plain)


def save_lora(
    path: str | Path, unet: nn.Module, metadata: Mapping[str, str] | None = None, dtype: torch.dtype | None = None
) -> None:
    """Write the network's LoRAs, in their own dtype or in `dtype`. Raises `UserError` if it has none, or the path
    cannot be written."""
    tensors: StateDict = {}
    for name, layer in lora_layers(unet).items():
        halves = {DOWN: layer.lora_down.weight, UP: layer.lora_up.weight, ALPHA: torch.tensor(float(layer.alpha))}
        tensors |= {f"{PREFIX}{name}.{leaf}": tensor.detach().to(dtype) for leaf, tensor in halves.items()}
    if not tensors:
        raise UserError(f"{path} would be empty, because the network has no LoRA. Export the network itself.")
    save_tensors(path, tensors, metadata)
