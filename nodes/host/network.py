"""The core's network as ComfyUI runs it: layers from its operations, attention from its dispatcher."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers
from comfy.utils import repeat_to_batch_size
from torch import Tensor

from ...vc_core.config import Config
from ...vc_core.model.unet import UNet3D
from .carried import Conditions, Styles
from .patches import OPTIONS, attend, open_to_patches, options_of, tell_unknown


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
        kinds = ("Linear", "Conv2d", "GroupNorm", "LayerNorm")
        layers = {kind: partial(getattr(operations, kind), dtype=dtype, device=device) for kind in kinds}
        super().__init__(videocomposer.unet, SimpleNamespace(**layers), attend)
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
        **carried: Any,
    ) -> Tensor:
        """One prediction for x `(B, C, F, h, w)`, in which positive and negative may lie one after the other.

        Args:
            context: text tokens `(B, 77 n, D)`.
            carried: what `VideoComposerModel.extra_conds` made of the CONDITIONING.
        """
        options = transformer_options or {}
        wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, options)
        executor = WrapperExecutor.new_class_executor(self._forward, self, wrappers)
        # The options come last, where wrappers such as EasyCache's look for them.
        return executor.execute(x, timesteps, context, control, options, **carried)

    def _forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        control: Any,
        transformer_options: Mapping[str, Any],
        conditions: Conditions | None = None,
        style: Styles | None = None,
        **kwargs: Any,
    ) -> Tensor:
        options = options_of(transformer_options, x)
        progress = 1.0 - float(timesteps[0]) / self.last_timestep
        tell_unknown(options, self.places)
        token = OPTIONS.set(options)
        try:
            stc = None
            if conditions is not None:
                stc = conditions.summed(self, x, progress, options.get("context_window"))
            if style is not None and style.schedule.active(progress):
                tokens = style.tokens(self, context)
                context = torch.cat([context, repeat_to_batch_size(tokens, len(context))], dim=1)
            return super().forward(x, timesteps, context, stc)
        finally:
            OPTIONS.reset(token)
