"""LoRA (arXiv 2106.09685): what fine-tuning adds to linear layers, of low rank, in files that ComfyUI's stock loader
reads.

A layer's change is alpha / rank * up @ down. In a file its tensors are `diffusion_model.<module>.lora_down.weight`,
`.lora_up.weight` and `.alpha`, with the module names of `vc_core.model.unet.UNet3D`, which the nodes' MODEL has too.
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
    """A linear layer, frozen, and its change of low rank. Weight and bias keep their names, as nothing is wrapped."""

    def __init__(self, layer: nn.Linear, rank: int, alpha: float):
        weight = layer.weight
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.weight, self.bias = weight, layer.bias
        self.alpha, self.scale = alpha, alpha / rank
        self.lora_down = nn.Linear(layer.in_features, rank, bias=False, device=weight.device, dtype=weight.dtype)
        self.lora_up = nn.Linear(rank, layer.out_features, bias=False, device=weight.device, dtype=weight.dtype)
        if not weight.is_meta:
            nn.init.kaiming_uniform_(self.lora_down.weight, a=math.sqrt(5))
            nn.init.zeros_(self.lora_up.weight)  # the change starts as none
        self.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias) + self.scale * self.lora_up(self.lora_down(x))

    def change(self) -> Tensor:
        """What is added to the weight, `(out, in)`."""
        return self.scale * self.lora_up.weight @ self.lora_down.weight


def lora_layers(unet: nn.Module) -> dict[str, LoRALinear]:
    """The layers that have a LoRA, by name."""
    return {name: module for name, module in unet.named_modules() if isinstance(module, LoRALinear)}


def alphas_of(unet: nn.Module) -> dict[str, float]:
    """The scale of each layer's LoRA times its rank."""
    return {name: layer.alpha for name, layer in lora_layers(unet).items()}


def add_lora(unet: nn.Module, rank: int, alpha: float | None, on: Collection[str]) -> list[str]:
    """Gives linear layers in whose name any of `on` is a LoRA, which alone trains from then on. Returns their names.

    `alpha` is by default the rank, so that the change is up @ down. Raises `UserError` where one of `on` is in no
    layer's name, or the network has LoRAs already.
    """
    linear = _linear(unet)
    if nowhere := [part for part in on if not any(part in name for name in linear)]:
        inner = ([part for part in name.split(".")[1:-1] if not part.isdigit()] for name in linear)
        examples = sorted({".".join(parts) for parts in inner if parts})
        raise UserError(
            f"The recipe's train.lora_on names {', '.join(nowhere)}, which no linear layer's name has: the names are "
            f"such as {shorten(examples, 12)}."
        )
    if not on:
        raise UserError("The recipe's train.lora_on is empty: name parts of modules, for instance spatial.block.")
    alpha, names = rank if alpha is None else alpha, [name for name in linear if any(part in name for part in on)]
    _give(unet, {name: LoRALinear(linear[name], rank, alpha) for name in names}, "another one is added")
    return names


def load_lora(unet: UNet3D, path: str | Path) -> list[str]:
    """Gives the layers that a file has a LoRA for these LoRAs, to be trained on or merged. Returns their names.

    For the names that keys may have see `vc_core.checkpoint.lora`. Raises `UserError` for a key that no linear layer of
    the network matches, one that is missing beside another, or a tensor of another shape; warns of text encoders'.
    """
    lora, linear = read_lora(path, unet), _linear(unet)
    if unmatched := [*lora.unmatched, *(name for name in lora.changes if name not in linear)]:
        raise UserError(
            f"{path} changes {counted(len(unmatched), 'layer')} that no linear layer of the network matches "
            f"({shorten(unmatched)}), and training goes on with linear layers alone: give a LoRA of those."
        )
    warn_unused(lora)
    layers = {name: LoRALinear(linear[name], low.rank, low.alpha) for name, low in lora.changes.items()}
    with torch.no_grad():
        for name, low in lora.changes.items():
            layers[name].lora_down.weight.copy_(low.down.flatten(1))
            layers[name].lora_up.weight.copy_(low.up)
    _give(unet, layers, f"{path} is loaded")
    return list(layers)


def _linear(unet: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in unet.named_modules() if isinstance(module, nn.Linear)}


def _give(unet: nn.Module, layers: Mapping[str, LoRALinear], what: str) -> None:
    """Puts layers with a LoRA in the place of those without, whose weights are frozen."""
    if existing := lora_layers(unet):
        raise UserError(f"The network has a LoRA already, of {shorten(existing)}: merge it before {what}.")
    unet.requires_grad_(False)
    for name, layer in layers.items():
        unet.set_submodule(name, layer)


def network_of(config: Config, weights: Mapping[str, Tensor], alphas: Mapping[str, float]) -> UNet3D:
    """The network of a config with these weights, all of them, which it takes over.

    The layers that `alphas` names have a LoRA, see `alphas_of`, of the rank of its weights.
    """
    unet = on_meta(config)
    for name, alpha in alphas.items():
        unet.set_submodule(name, LoRALinear(unet.get_submodule(name), len(weights[f"{name}.{DOWN}"]), alpha))
    unet.load_state_dict(weights, assign=True)
    return unet


@torch.no_grad()
def merge_lora(unet: nn.Module) -> None:
    """Adds each LoRA to its layer's weight; the network is then as without LoRAs."""
    for name, layer in lora_layers(unet).items():
        plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        layer.weight += layer.change()
        plain.weight, plain.bias = layer.weight, layer.bias
        unet.set_submodule(name, plain)


def save_lora(path: str | Path, unet: nn.Module, metadata: Mapping[str, str] | None = None) -> None:
    """Writes the network's LoRAs. Raises `UserError` where it has none, or for a path that cannot be written."""
    tensors: StateDict = {}
    for name, layer in lora_layers(unet).items():
        halves = {DOWN: layer.lora_down.weight, UP: layer.lora_up.weight, ALPHA: torch.tensor(float(layer.alpha))}
        tensors |= {f"{PREFIX}{name}.{leaf}": tensor.detach() for leaf, tensor in halves.items()}
    if not tensors:
        raise UserError(f"{path} would be empty: the network has no LoRA; export the network itself.")
    save_tensors(path, tensors, metadata)
