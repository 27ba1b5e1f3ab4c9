"""The core's network as ComfyUI runs it: layers from its operations, attention from its dispatcher."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import comfy.patcher_extension
import comfy.utils
import torch
from torch import Tensor

from ...vc_core.config import Config
from ...vc_core.model.unet import UNet3D
from .embedding import Conditions, Style
from .patches import OPTIONS, attend, open_to_patches, options_of, tell_unknown


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
        self.in_channels = videocomposer.unet.channels  # stock nodes look it up
        self.last_timestep = videocomposer.diffusion.steps - 1
        self.places = open_to_patches(self)

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
        options = {} if transformer_options is None else transformer_options
        kind = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
        wrappers = comfy.patcher_extension.get_all_wrappers(kind, options)
        executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(self._forward, self, wrappers)
        # The options come last, where wrappers such as EasyCache's look for them.
        return executor.execute(x, timesteps, context, control, options, conditions=conditions, style=style)

    def _forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        control: Any,
        transformer_options: Mapping[str, Any],
        conditions: Conditions | None = None,
        style: Style | None = None,
    ) -> Tensor:
        options = options_of(transformer_options, x)
        progress = 1.0 - float(timesteps[0]) / self.last_timestep
        tell_unknown(options, self.places)
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
