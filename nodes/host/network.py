"""The core's network as ComfyUI runs it: layers from its operations, attention from its dispatcher."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import comfy.utils
import torch
from torch import Tensor

from ...vc_core.config import Config
from ...vc_core.model.unet import UNet3D
from .embedding import Conditions, Style
from .patches import OPTIONS, attend, check_known, open_to_patches


class Layers:
    """ComfyUI's layers of one storage type on one device, as the namespace that `UNet3D` takes."""

    def __init__(self, operations: Any, dtype: torch.dtype | None, device: torch.device | None):
        for kind in ("Linear", "Conv2d", "GroupNorm", "LayerNorm"):
            setattr(self, kind, partial(getattr(operations, kind), dtype=dtype, device=device))


class HostUNet(UNet3D):
    """`UNet3D` with the forward that `BaseModel` calls.

    The STC-encoders and the style's layers run here, since only here the weights are where they compute and have a
    LoRA's changes on them.
    """

    def __init__(
        self,
        videocomposer: Config,
        operations: Any,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        **kwargs: Any,
    ):
        super().__init__(videocomposer.unet, Layers(operations, dtype, device), attend)
        self.dtype = dtype
        self.last_timestep = videocomposer.diffusion.steps - 1
        open_to_patches(self)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        control: Any = None,
        transformer_options: Mapping[str, Any] | None = None,
        conditions: Conditions | None = None,
        style: Style | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """One prediction for x `(B, C, F, h, w)`, in which positive and negative may lie one after the other.

        Args:
            context: text tokens `(B, 77 n, D)`.
            conditions, style: what `VideoComposerModel.extra_conds` made of the CONDITIONING.
        """
        options = transformer_options or {}
        progress = 1.0 - float(timesteps[0]) / self.last_timestep
        check_known(options)
        token = OPTIONS.set(options)
        try:
            stc = None
            if conditions is not None:
                stc = conditions.summed(self, x, progress, options.get("context_window"))
            if style is not None and style.active(progress):
                tokens = style.tokens(self, context)
                context = torch.cat([context, comfy.utils.repeat_to_batch_size(tokens, len(context))], dim=1)
            return super().forward(x, timesteps, context, stc)
        finally:
            OPTIONS.reset(token)
