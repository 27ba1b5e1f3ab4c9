"""The 3D UNet of VideoComposer: Stable Diffusion 2.1's UNet with temporal layers, and the STC-encoders."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..conditions import CONDITIONS
from ..config import UNetConfig
from .blocks import (
    Attend,
    Downsample,
    ResBlock,
    SpatialTransformer,
    TemporalTransformer,
    Upsample,
    attend,
    low_frequencies_scaled,
)
from .stc import STCEncoder

_SR600 = ((1.1, 0.6), (1.2, 0.4))
"""The first decoder stages of SR600: factors on the first half of the channels, and on the lowest frequencies of the
skip."""


@dataclass(frozen=True)
class Stage:
    """One block of the UNet's encoder or decoder: its layers and widths."""

    in_channels: int
    channels: int
    resnet: bool = True
    attention: bool = False
    resample: bool = False


def encoder_stages(config: UNetConfig) -> Iterator[Stage]:
    """The encoder: residual blocks level by level, and a downsampling stage between levels."""
    channels = config.width
    for level, multiplier in enumerate(config.multipliers):
        for _ in range(config.res_blocks):
            yield Stage(channels, config.width * multiplier, attention=level in config.attention_levels)
            channels = config.width * multiplier
        if level < len(config.multipliers) - 1:
            yield Stage(channels, channels, resnet=False, resample=True)


def middle_stage(config: UNetConfig) -> Stage:
    deepest = config.width * config.multipliers[-1]
    return Stage(deepest, deepest, attention=True)


def decoder_stages(config: UNetConfig) -> Iterator[Stage]:
    """The decoder: every stage uses one skip. The last stage of a level upsamples, except on the topmost level."""
    skips = [config.width, *(stage.channels for stage in encoder_stages(config))]
    channels = skips[-1]
    for level, multiplier in reversed(list(enumerate(config.multipliers))):
        for i in range(config.res_blocks + 1):
            yield Stage(
                channels + skips.pop(),
                config.width * multiplier,
                attention=level in config.attention_levels,
                resample=level > 0 and i == config.res_blocks,
            )
            channels = config.width * multiplier


def kind_of(name: str) -> str:
    """The kind of layer that a parameter belongs to, from its name: `stc`, `style`, `temporal` or `spatial`."""
    if name.startswith("stc."):
        return "stc"
    if name.startswith("style_"):
        return "style"
    return "temporal" if re.search(r"(^|\.)temporal(_in)?\.", name) else "spatial"


class Block(nn.Module):
    """A residual block, with its Transformers if the stage has attention."""

    def __init__(self, stage: Stage, config: UNetConfig, ops: Any, attend: Attend):
        super().__init__()
        heads = stage.channels // config.head_dim, config.head_dim
        self.resnet = _resnet(stage, config, ops) if stage.resnet else None
        self.spatial = self.temporal = None
        if stage.attention:
            self.spatial = SpatialTransformer(stage.channels, *heads, config.context_dim, ops, attend)
            self.temporal = TemporalTransformer(stage.channels, *heads, None, ops, attend)

    def forward(self, x: Tensor, time: Tensor, context: Tensor, frames: int) -> Tensor:
        x = self.resnet(x, time, frames)
        return x if self.spatial is None else self.temporal(self.spatial(x, context), frames)


class EncoderBlock(Block):
    """A block, or a downsampling instead."""

    def __init__(self, stage: Stage, config: UNetConfig, ops: Any, attend: Attend):
        super().__init__(stage, config, ops, attend)
        self.downsample = Downsample(stage.channels, ops, _rows(config)) if stage.resample else None

    def forward(self, x: Tensor, time: Tensor, context: Tensor, frames: int) -> Tensor:
        return super().forward(x, time, context, frames) if self.downsample is None else self.downsample(x)


class DecoderBlock(Block):
    """A block over the previous output and its skip. The last block of a level upsamples."""

    def __init__(self, stage: Stage, config: UNetConfig, ops: Any, attend: Attend):
        super().__init__(stage, config, ops, attend)
        self.upsample = Upsample(stage.channels, ops, _rows(config)) if stage.resample else None

    def forward(
        self, x: Tensor, skip: Tensor, time: Tensor, context: Tensor, frames: int, next_size: tuple[int, int]
    ) -> Tensor:
        x = super().forward(torch.cat([x, skip], dim=1), time, context, frames)
        return x if self.upsample is None else self.upsample(x, next_size)


class UNet3D(nn.Module):
    """Predict the noise (or v) of a noisy video latent from text and style tokens and the STC embeddings.

    Args:
        config: all sizes.
        operations: namespace of the layers (Conv2d, Linear, GroupNorm, LayerNorm). A host can pass its own.
        attend: attention function, see `vc_core.model.blocks.Attend`. A host can pass its own.
    """

    recompute = False
    """Whether the backward pass computes the blocks' activations again, instead of storing them."""

    def __init__(self, config: UNetConfig, operations: Any = nn, attend: Attend = attend):
        super().__init__()
        ops, width = operations, config.width
        self.config = config
        self.time_in = ops.Linear(width, width * 4)
        self.time_out = ops.Linear(width * 4, width * 4)
        if config.style_tokens:
            self.style_in = ops.Linear(config.context_dim, config.context_dim)
            self.style_out = ops.Linear(config.context_dim, config.context_dim * config.style_tokens)
        stc = config.stc_channels, config.stc_heads, config.stc_dropout, ops, attend
        self.stc = nn.ModuleDict({name: STCEncoder(CONDITIONS[name].channels, *stc) for name in config.conditions})
        self.conv_in = ops.Conv2d(config.channels + config.stc_channels, width, 3, padding=1)
        self.temporal_in = TemporalTransformer(width, config.temporal_in_heads, config.head_dim, None, ops, attend)
        self.encoder = nn.ModuleList(EncoderBlock(s, config, ops, attend) for s in encoder_stages(config))
        self.middle = EncoderBlock(middle_stage(config), config, ops, attend)
        self.middle_out = _resnet(middle_stage(config), config, ops)
        self.decoder = nn.ModuleList(DecoderBlock(s, config, ops, attend) for s in decoder_stages(config))
        self.norm_out = ops.GroupNorm(32, width * config.multipliers[0])
        self.conv_out = ops.Conv2d(width * config.multipliers[0], config.channels, 3, padding=1)

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor, stc: Tensor | None = None) -> Tensor:
        """Compute one prediction.

        Args:
            x: noisy latent `(B, channels, F, h, w)`, any h and w.
            timesteps: `(B,)` in [0, 1000).
            context: `(B, tokens, context_dim)`: the text tokens, then the style tokens, if any.
            stc: sum of STC embeddings `(B, stc_channels, F or 1, h, w)`; None without conditions.

        Returns:
            `(B, channels, F, h, w)`.
        """
        frames = x.shape[2]
        stc = x.new_zeros(1) if stc is None else stc
        stc = stc.expand(len(x), self.config.stc_channels, *x.shape[2:])
        x = rearrange(torch.cat([x, stc], dim=1), "b c f h w -> (b f) c h w").contiguous()
        time = timestep_embedding(timesteps, self.config.width).to(x.dtype)
        time = F.silu(self.time_out(F.silu(self.time_in(time))))

        run = partial(checkpoint, use_reentrant=False) if self.recompute else nn.Module.__call__
        x = self.temporal_in(self.conv_in(x), frames)
        skips = [x]
        for block in self.encoder:
            x = run(block, x, time, context, frames)
            skips.append(x)
        x = run(self.middle, x, time, context, frames)
        x = run(self.middle_out, x, time, frames)
        for number, block in enumerate(self.decoder):
            skip = skips.pop()
            if self.config.super_resolution and number < len(_SR600):
                half, low = _SR600[number]
                x = torch.cat([x[:, : x.shape[1] // 2] * half, x[:, x.shape[1] // 2 :]], dim=1)
                skip = low_frequencies_scaled(skip, low)
            next_size = skips[-1].shape[-2:] if skips else skip.shape[-2:]
            x = run(block, x, skip, time, context, frames, next_size)
        x = self.conv_out(F.silu(self.norm_out(x)))
        return rearrange(x, "(b f) c h w -> b c f h w", f=frames)

    def blocks(self) -> list[nn.Module]:
        """The modules that do most of the work: the units of sharding, recomputing and compiling."""
        return [*self.encoder, self.middle, self.middle_out, *self.decoder]

    def encode_style(self, image_embedding: Tensor) -> Tensor:
        """The style tokens `(B, style_tokens, context_dim)` of a raw image embedding `(B, 1, context_dim)`.

        Raises:
            UserError: this network does not support style.
        """
        self.config.check_supports("style")
        tokens = self.style_out(F.silu(self.style_in(image_embedding)))
        return rearrange(tokens, "b i (n d) -> b (i n) d", n=self.config.style_tokens)

    def encode_condition(self, name: str, tensor: Tensor, size: tuple[int, int]) -> Tensor:
        """The STC embedding `(B, stc_channels, F, h, w)` of a condition `(B, C, F, H, W)`, `size` = (h, w).

        A spatial condition needs only one frame: attention over equal frames returns the frame itself. So F stays 1,
        and the embedding is added to every frame.

        Raises:
            UserError: this network has no STC-encoder of that name.
        """
        self.config.check_supports(name)
        return self.stc[name](tensor, size)


def timestep_embedding(timesteps: Tensor, dim: int) -> Tensor:
    """Sinusoids `(B, dim)` in float32, cosines first, periods up to 10000 steps."""
    half = dim // 2
    frequencies = torch.pow(10000, -torch.arange(half, dtype=torch.float32, device=timesteps.device) / half)
    angles = timesteps.float()[:, None] * frequencies
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, dim % 2))


def _rows(config: UNetConfig) -> int:
    return 2 if config.super_resolution else 1


def _resnet(stage: Stage, config: UNetConfig, ops: Any) -> ResBlock:
    return ResBlock(stage.in_channels, stage.channels, config.width * 4, config.dropout, ops)
