"""Images beside video: a batch of single frames leaves the temporal layers out, as in the paper's joint training."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from vc_core.model.blocks import TemporalConv, TemporalTransformer
from vc_core.model.unet import UNet3D


def leave_out_for_images(unet: UNet3D) -> UNet3D:
    """Makes the temporal convolutions and Transformers the identity wherever there is one frame. Returns the network.

    Their parameters then get gradients of zeros instead of none, so that a rank with images takes part in the same
    collectives as those with videos. The STC-encoders' temporal layers stay: they see single frames in videos too.

    It is a property of the network and not of a call, as blocks may be computed again in the backward pass.
    """
    for module in unet.modules():
        if isinstance(module, TemporalConv | TemporalTransformer):
            # An attribute of the instance: the names of parameters stay, and a copy of the network has its own.
            module.forward = partial(_temporal, module)
    return unet


def _temporal(module: nn.Module, x: Tensor, frames: int) -> Tensor:
    if frames == 1:
        return x + nothing_of(module)
    return type(module).forward(module, x, frames)


def nothing_of(module: nn.Module) -> Tensor | float:
    """0, of which every parameter that trains has a gradient of zeros."""
    firsts = [p.flatten()[0] for p in module.parameters() if p.requires_grad]
    return torch.stack(firsts).sum() * 0.0 if firsts else 0.0
