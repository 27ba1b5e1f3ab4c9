"""The STC-encoder (paper, section 3.2): turns a spatial or temporal condition into an embedding of latent size."""

from typing import Any

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .blocks import Attend


class STCEncoder(nn.Module):
    """Three light convolutions to latent size, then one Transformer layer over the frames at every position.

    The released code pools every input to 128 x 128. Four times the latent size is the same at its 256 x 256 pixels,
    and also works at other sizes.
    """

    def __init__(self, in_channels: int, channels: int, heads: int, dropout: float, ops: Any, attend: Attend):
        super().__init__()
        self.conv1 = ops.Conv2d(in_channels, channels * 4, 3, padding=1)
        self.conv2 = ops.Conv2d(channels * 4, channels * 4, 3, stride=2, padding=1)
        self.conv3 = ops.Conv2d(channels * 4, channels, 3, stride=2, padding=1)
        self.temporal = TemporalLayer(channels, heads, dropout, ops, attend)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Return `(b, channels, f, h, w)` for a latent of `size` (h, w); x is `(b, in_channels, f, H, W)`, any H, W."""
        b, (h, w) = len(x), size
        x = rearrange(x, "b c f h w -> (b f) c h w")
        x = F.silu(self.conv1(x))
        if x.shape[-2:] != (4 * h, 4 * w):  # avoid a copy if it has this size
            x = F.adaptive_avg_pool2d(x, (4 * h, 4 * w))
        x = self.conv3(F.silu(self.conv2(x)))
        x = self.temporal(rearrange(x, "(b f) c h w -> (b h w) f c", b=b))
        return rearrange(x, "(b h w) f c -> b c f h w", h=h, w=w)


class TemporalLayer(nn.Module):
    """One Transformer layer: pre-norm attention, then a feed-forward without a norm, as in the released code."""

    def __init__(self, channels: int, heads: int, dropout: float, ops: Any, attend: Attend):
        super().__init__()
        self.heads, self.attend, self.dropout = heads, attend, dropout
        self.norm = ops.LayerNorm(channels)
        self.to_qkv = ops.Linear(channels, 3 * heads * channels, bias=False)
        self.to_out = ops.Linear(heads * channels, channels)
        self.ff_in = ops.Linear(channels, channels * 4)
        self.ff_out = ops.Linear(channels * 4, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor like x `(positions, f, channels)`."""
        q, k, v = self.to_qkv(self.norm(x)).chunk(3, dim=-1)
        x = x + F.dropout(self.to_out(self.attend(q, k, v, self.heads)), self.dropout, self.training)
        return x + self.ff_out(F.dropout(F.gelu(self.ff_in(x)), self.dropout, self.training))
