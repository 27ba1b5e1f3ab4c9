"""Blocks of the 3D UNet.

Between blocks, a video is a stack of frames `(b f) c h w`, which spatial layers read directly. Temporal layers read the
same memory as a plane `b c f (h w)`, a view: their norms compute statistics over it, and their (3, 1, 1) convolutions
are 2D convolutions with kernel (3, 1) on it. This needs no 5D copy. Text, style and time are stored once per clip and
broadcast to all of its frames.

The memory is contiguous, not channels-last: with channels-last, torch's GroupNorm on a CPU is less precise, by 1e-3 of
the output of the golden networks.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

Attend = Callable[..., Tensor]
"""`attend(q, k, v, heads)` with q `(B, N, heads * d)`, k and v `(B, M, heads * d)`; returns `(B, N, heads * d)`."""


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Torch's scaled dot-product attention, see `Attend` for the shapes."""
    q, k, v = (rearrange(t, "b n (h d) -> b h n d", h=heads) for t in (q, k, v))
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)")


class Attention(nn.Module):
    """Multi-head attention of a sequence to itself, or to a context."""

    def __init__(self, dim: int, heads: int, head_dim: int, context_dim: int | None, ops: Any, attend: Attend):
        super().__init__()
        inner = heads * head_dim
        self.heads, self.attend = heads, attend
        self.to_q = ops.Linear(dim, inner, bias=False)
        self.to_k = ops.Linear(context_dim or dim, inner, bias=False)
        self.to_v = ops.Linear(context_dim or dim, inner, bias=False)
        self.to_out = ops.Linear(inner, dim)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return a tensor like x `(B, N, dim)`. The context is `(C, M, context_dim)`; C divides B, and neighbours in
        the batch share a context."""
        context = x if context is None else context
        k, v = self.to_k(context), self.to_v(context)
        q = self.to_q(x)
        # Queries are independent, so all frames of a clip form one long sequence that attends to the clip's context.
        out = self.attend(q.reshape(len(context), -1, q.shape[-1]), k, v, self.heads)
        return self.to_out(out.reshape(q.shape))


class FeedForward(nn.Module):
    """Feed-forward layer gated by GELU, four times as wide inside."""

    def __init__(self, dim: int, ops: Any):
        super().__init__()
        self.proj_in = ops.Linear(dim, dim * 8)
        self.proj_out = ops.Linear(dim * 4, dim)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj_in(x).chunk(2, dim=-1)
        return self.proj_out(F.gelu(gate).mul_(value))  # in place, which makes a forward on a CPU 4 % faster


class TransformerBlock(nn.Module):
    """Self-attention, attention to the context (without one, self-attention again), feed-forward; pre-norm."""

    def __init__(self, dim: int, heads: int, head_dim: int, context_dim: int | None, ops: Any, attend: Attend):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (ops.LayerNorm(dim) for _ in range(3))
        self.attn1 = Attention(dim, heads, head_dim, None, ops, attend)
        self.attn2 = Attention(dim, heads, head_dim, context_dim, ops, attend)
        self.ff = FeedForward(dim, ops)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Transformer(nn.Module):
    """A Transformer block between projections; base of the spatial and the temporal Transformer."""

    def __init__(self, channels: int, heads: int, head_dim: int, context_dim: int | None, ops: Any, attend: Attend):
        super().__init__()
        inner = heads * head_dim
        self.norm = ops.GroupNorm(32, channels, eps=1e-6)
        self.proj_in = ops.Linear(channels, inner)
        self.block = TransformerBlock(inner, heads, head_dim, context_dim, ops, attend)
        self.proj_out = ops.Linear(inner, channels)


class SpatialTransformer(Transformer):
    """Attention among the positions of each frame, and from them to the clip's text and style tokens."""

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Return a tensor like x `((b f), c, h, w)`. The context is `(b, tokens, context_dim)`."""
        tokens = rearrange(self.norm(x), "bf c h w -> bf (h w) c")
        tokens = self.proj_out(self.block(self.proj_in(tokens), context))
        return x + rearrange(tokens, "bf (h w) c -> bf c h w", h=x.shape[2])


class TemporalTransformer(Transformer):
    """Attention among the frames at each position, twice (it has no context), without a position code for frames."""

    without_on_images = False  # see `leave_out`

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """Return a tensor like x `((b f), c, h, w)`."""
        if self.without_on_images and frames == 1:
            return leave_out(self, x)
        h = x.shape[2]
        plane = rearrange(x, "(b f) c h w -> b c f (h w)", f=frames)
        tokens = rearrange(self.norm(plane), "b c f s -> (b s) f c")
        tokens = self.proj_out(self.block(self.proj_in(tokens)))
        return x + rearrange(tokens, "(b h w) f c -> (b f) c h w", h=h, w=x.shape[3])


class TemporalConv(nn.Module):
    """Four convolutions over three frames at each position; a residual that is zero before training.

    They are 2D convolutions with kernel (3, 1) over the plane of frames and positions. The result equals that of the
    released (3, 1, 1) convolutions, without copies and without the slower 3D kernels.
    """

    without_on_images = False  # see `leave_out`

    def __init__(self, channels: int, dropout: float, ops: Any):
        super().__init__()
        self.dropout = dropout
        self.norms = nn.ModuleList(ops.GroupNorm(32, channels) for _ in range(4))
        self.convs = nn.ModuleList(ops.Conv2d(channels, channels, (3, 1), padding=(1, 0)) for _ in range(4))

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """Return a tensor like x `((b f), c, h, w)`."""
        if self.without_on_images and frames == 1:
            return leave_out(self, x)
        plane = rearrange(x, "(b f) c h w -> b c f (h w)", f=frames)
        for i, (norm, conv) in enumerate(zip(self.norms, self.convs, strict=True)):
            plane = F.silu(norm(plane))
            plane = conv(F.dropout(plane, self.dropout if i else 0.0, self.training))
        return x + rearrange(plane, "b c f (h w) -> (b f) c h w", h=x.shape[2])


def leave_out(module: nn.Module, x: Tensor) -> Tensor:
    """Return x unchanged: training on images skips temporal layers. Trainable parameters get gradients of zeros instead
    of none, so that a rank with images runs the same collectives as ranks with videos."""
    firsts = [parameter.flatten()[0] for parameter in module.parameters() if parameter.requires_grad]
    return x + torch.stack(firsts).sum() * 0.0 if firsts else x


class ResBlock(nn.Module):
    """Two spatial convolutions with the time embedding between them, then the temporal convolutions."""

    def __init__(self, in_channels: int, channels: int, time_dim: int, dropout: float, ops: Any):
        super().__init__()
        self.dropout = dropout
        self.norm1 = ops.GroupNorm(32, in_channels)
        self.conv1 = ops.Conv2d(in_channels, channels, 3, padding=1)
        self.time_proj = ops.Linear(time_dim, channels)
        self.norm2 = ops.GroupNorm(32, channels)
        self.conv2 = ops.Conv2d(channels, channels, 3, padding=1)
        self.skip = nn.Identity() if in_channels == channels else ops.Conv2d(in_channels, channels, 1)
        self.temporal = TemporalConv(channels, dropout, ops)

    def forward(self, x: Tensor, time: Tensor, frames: int) -> Tensor:
        """Return `((b f), channels out, h, w)`, from x `((b f), c, h, w)` and time `(b, time_dim)` after its SiLU."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = h.unflatten(0, (-1, frames)) + self.time_proj(time)[:, None, :, None, None]
        h = F.silu(self.norm2(h.flatten(0, 1)))
        h = self.conv2(F.dropout(h, self.dropout, self.training))
        return self.temporal(self.skip(x) + h, frames)


class Downsample(nn.Module):
    """Halve height and width with a convolution (odd sizes are rounded up).

    Args:
        rows: rows of zeros above and below a frame. SR600 has 2, which makes the result one row higher.
    """

    def __init__(self, channels: int, ops: Any, rows: int = 1):
        super().__init__()
        self.conv = ops.Conv2d(channels, channels, 3, stride=2, padding=(rows, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Nearest-neighbour resize to `size` (double, except for odd sizes), then a convolution.

    Args:
        rows: as in the `Downsample` of the same level. With 2, the height is doubled, then cropped to `size`: the first
            row is removed, and as many of the last rows as necessary.
    """

    def __init__(self, channels: int, ops: Any, rows: int = 1):
        super().__init__()
        self.cut = rows - 1
        self.conv = ops.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        height = 2 * x.shape[2] if self.cut else size[0]
        x = F.interpolate(x, (height, size[1]), mode="nearest")
        return self.conv(x[:, :, self.cut : self.cut + size[0]])


def low_frequencies_scaled(x: Tensor, scale: float) -> Tensor:
    """Multiply the mean of x `(b, c, h, w)` and its lowest negative frequencies along both axes by `scale`.

    SR600 filters its skips in this manner, as FreeU does with a threshold of 1 (arXiv 2309.11497).
    """
    spectrum = torch.fft.fftn(x.float(), dim=(-2, -1))
    mask = spectrum.real.new_ones(x.shape[-2:])
    mask[[[-1], [0]], [[-1, 0]]] = scale  # the four in the middle of the shifted spectrum
    return torch.fft.ifftn(spectrum * mask, dim=(-2, -1)).real.to(x.dtype)
