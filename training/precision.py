"""The fastest dtype and attention for training small networks."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from vc_core.model.blocks import Attend, attend

MOST = 2**15
"""Maximum number of sequences per call of torch's own attention."""
SMALL = 2**17
"""Up to this product of two sequence lengths, `attend_in_full` is faster."""


def fast_type(device: torch.device) -> torch.dtype:
    """Return bfloat16 on CUDA and on CPUs with AMX, otherwise float32."""
    fast = device.type == "cuda"
    if device.type == "cpu" and getattr(torch.cpu, "get_capabilities", dict)().get("amx_bf16"):  # from torch 2.10 on
        # oneDNN can be configured not to use AMX; bfloat16 is then many times slower.
        fast = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def fast_attend(device: torch.device) -> Attend:
    """Return the attention to train with on a device."""
    return attend_in_full if device.type == "cpu" else attend_split


def attend_split(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Torch's own attention on at most `MOST` sequences at a time. CUDA's kernels put sequences on a grid axis that is
    limited to 65,535, and in temporal attention every position of every clip is a sequence."""
    parts = zip(q.split(MOST), k.split(MOST), v.split(MOST), strict=True)
    return torch.cat([attend(*part, heads) for part in parts]) if len(q) > MOST else attend(q, k, v, heads)


def attend_in_full(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attention of short sequences as two matrix products, see `vc_core.model.blocks.Attend`. On a CPU it is faster
    than torch's own, most of all in bfloat16. Long sequences use torch's own, because their weights would fill the
    memory."""
    if q.shape[1] * k.shape[1] > SMALL:
        return attend(q, k, v, heads)
    q, k, v = (rearrange(t, "b n (h d) -> b h n d", h=heads) for t in (q, k, v))
    weights = (q * q.shape[-1] ** -0.5 @ k.mT).softmax(-1)
    return rearrange(weights @ v, "b h n d -> b n (h d)")
