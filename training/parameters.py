"""Which parameters train, and at which learning rates."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from training.lora import add_lora, load_lora
from training.recipe import Recipe
from vc_core.errors import UserError
from vc_core.model.unet import UNet3D

_STC = re.compile(r"^stc\.")
_TEMPORAL = re.compile(r"^(?!stc\.).*(^|\.)temporal(_in)?\.")
_STYLE = re.compile(r"^style_(in|out)\.")


def is_temporal(name: str) -> bool:
    """Whether a parameter is of the learning rate for temporal weights: temporal layers and STC-encoders."""
    return bool(_STC.search(name) or _TEMPORAL.search(name))


def choose_parameters(unet: UNet3D, recipe: Recipe) -> None:
    """Makes what the recipe trains require gradients and nothing else; adds the LoRA. Before the network is wrapped.

    In stage 1 there are no conditions, so that STC-encoders and the style's layers rest, where the network has them.

    Raises:
        UserError: nothing would be learned: there is nothing of that kind, or nothing that its gradient could come
            from; or `train.lora_from` is no LoRA for this network.
    """
    train = recipe.train
    if train.what == "lora":
        if train.lora_from is not None:
            load_lora(unet, train.lora_from)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(recipe.seed)
                add_lora(unet, train.lora_rank, train.lora_alpha, train.lora_on)
    else:
        pattern = {"all": re.compile(""), "temporal": _TEMPORAL, "stc": _STC}[train.what]
        for name, parameter in unet.named_parameters():
            parameter.requires_grad_(bool(pattern.search(name)))
    if recipe.stage == 1:
        for name, parameter in unet.named_parameters():
            if _STC.search(name) or _STYLE.search(name):
                parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in unet.parameters()):
        raise UserError(f"The recipe's train.what {train.what} leaves nothing to train in stage {recipe.stage}: the "
                        "network has none of it, or the stage has no use for it; take all.")  # fmt: skip
    stc_channels = unet.conv_in.weight[:, unet.config.channels :]
    if train.what == "stc" and not stc_channels.any():
        raise UserError("The recipe's train.what stc would learn nothing: the first convolution's weights for the "
                        "conditions are zero, as in a network that was not trained on any; take all.")  # fmt: skip


def parameter_groups(unet: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Groups for an optimizer of what requires gradients, each with `name`, `params` and `lr`.

    The group `temporal` has the temporal layers and the STC-encoders, `spatial` the rest; none of them is empty.
    """
    rates = recipe.optimizer
    temporal_rate = rates.temporal_learning_rate
    found: dict[str, list[nn.Parameter]] = {"spatial": [], "temporal": []}
    for name, parameter in unet.named_parameters():
        if parameter.requires_grad:
            found["temporal" if is_temporal(name) else "spatial"].append(parameter)
    of = {"spatial": rates.learning_rate, "temporal": rates.learning_rate if temporal_rate is None else temporal_rate}
    return [{"name": name, "params": params, "lr": of[name]} for name, params in found.items() if params]
