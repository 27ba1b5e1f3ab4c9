"""The core's network with ComfyUI's layers and attention."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers
from comfy.utils import repeat_to_batch_size
from torch import Tensor

from ...vc_core.config import Config
from ...vc_core.diffusion.tiles import TiledNetwork
from ...vc_core.memory import report_out_of_memory
from ...vc_core.model.unet import UNet3D
from .carried import Conditions, Styles, Texts
from .patches import OPTIONS, attend, open_to_patches, options_of, report_unknown

ADVICE = ("a smaller width and height on STC Encode", "fewer frames", "a smaller context_length")
TILES = "videocomposer_tiles"
"""Key of `transformer_options` with the sampler's `Tiles`."""


class HostUNet(UNet3D):
    """`UNet3D` with the forward that `BaseModel` calls.

    The STC-encoders and the style layers run here because only here the weights are on the compute device, with LoRAs
    applied.
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
        self.in_channels = videocomposer.unet.channels  # stock nodes read it
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
        """Return a prediction for x `(B, C, F, h, w)`; the batch may contain the positive and the negative side.

        Args:
            context: text tokens `(B, 77 n, D)`.
            carried: the inputs from `VideoComposerModel.extra_conds`.
        """
        options = transformer_options or {}
        wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, options)
        executor = WrapperExecutor.new_class_executor(self._forward, self, wrappers)
        # On a GPU, ComfyUI reports missing memory itself, and unloads its models.
        with report_out_of_memory(x.device, ADVICE) if x.device.type == "cpu" else nullcontext():
            # The options come last because wrappers such as EasyCache's expect them there.
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
        texts: Texts | None = None,
        **kwargs: Any,
    ) -> Tensor:
        options = options_of(transformer_options, x)
        progress = 1.0 - float(timesteps[0]) / self.last_timestep
        report_unknown(options, self.places)
        token = OPTIONS.set(options)
        try:
            stc = None
            if conditions is not None:
                stc = conditions.summed(self, x, progress, options.get("context_window"))
            if texts is not None:
                context = texts.tokens(context, options.get("context_window"))
            if style is not None and style.schedule.active(progress):
                tokens = style.tokens(self, context)
                context = torch.cat([context, repeat_to_batch_size(tokens, len(context))], dim=1)
            predict, tiles = super().forward, options.get(TILES)
            return (predict if tiles is None else TiledNetwork(predict, tiles))(x, timesteps, context, stc)
        finally:
            OPTIONS.reset(token)
