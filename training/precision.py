"""What small networks are computed with fastest: the type of their matrices, and the form of their attention."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from vc_core.model.blocks import Attend, attend

MOST = 2**15
"""Sequences that torch's own attention is given at a time."""
SMALL = 2**17
"""Products of the lengths of two sequences up to which attention in full is the faster one."""


def fast_type(device: torch.device) -> torch.dtype:
    """bfloat16 on CUDA and on processors with units for it (AMX), else float32."""
    fast = device.type == "cuda"
    if device.type == "cpu" and getattr(torch.cpu, "get_capabilities", dict)().get("amx_bf16"):  # from torch 2.10 on
        # oneDNN may have been told to do without them, and then takes many times as long.
        fast = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def fast_attend(device: torch.device) -> Attend:
    """The attention to train with on a device."""
    return attend_in_full if device.type == "cpu" else attend_split


def attend_split(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Torch's own attention, at most `MOST` sequences at a time: CUDA's kernels count them along an axis of the grid
    that ends at 65,535, and every position of every clip is one where frames attend to each other."""
    parts = zip(q.split(MOST), k.split(MOST), v.split(MOST), strict=True)
    return torch.cat([attend(*part, heads) for part in parts]) if len(q) > MOST else attend(q, k, v, heads)


def attend_in_full(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attention of short sequences by two matrix products, see `vc_core.model.blocks.Attend`: on a CPU faster than
    torch's own, above all in bfloat16. Of long ones, whose weights would fill the memory, it is torch's own."""
    if q.shape[1] * k.shape[1] > SMALL:
        return attend(q, k, v, heads)
    q, k, v = (rearrange(t, "b n (h d) -> b h n d", h=heads) for t in (q, k, v))
    weights = (q * q.shape[-1] ** -0.5 @ k.mT).softmax(-1)
    return rearrange(weights @ v, "b h n d -> b n (h d)")
