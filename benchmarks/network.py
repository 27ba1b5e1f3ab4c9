"""Compare the speed of this network with the same network in the manner of the original code, which repeats work.

    ./vc bench network

Prints ratios of alternating runs. The sizes are a fraction of the released network's.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vc_core.config import UNetConfig
from vc_core.model.blocks import TemporalConv
from vc_core.model.unet import UNet3D

FRAMES, LATENT, STEPS = 16, 16, 3
CONFIG = UNetConfig(width=64, multipliers=(1, 2, 4), res_blocks=1, head_dim=32, temporal_in_heads=4)


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def ratio(first: Callable[[], object], second: Callable[[], object], rounds: int = 5) -> float:
    """Return the time of `first` / the time of `second`: the median of alternating runs."""
    first(), second()
    return statistics.median(seconds(first) / seconds(second) for _ in range(rounds))


def original_temporal_conv(block: TemporalConv, x: Tensor, frames: int) -> Tensor:
    """Compute the block with (3, 1, 1) convolutions in 3D, like the original code."""
    video = rearrange(x, "(b f) c h w -> b c f h w", f=frames)
    h = video
    for norm, conv in zip(block.norms, block.convs, strict=True):
        h = F.conv3d(F.silu(norm(h)), conv.weight[..., None], conv.bias, padding=(1, 0, 0))
    return rearrange(video + h, "b c f h w -> (b f) c h w")


@torch.inference_mode()
def main() -> None:
    torch.manual_seed(0)
    unet = UNet3D(CONFIG).eval()
    size = (LATENT, LATENT)
    x, t = torch.randn(1, 4, FRAMES, *size), torch.tensor([500])
    context = torch.randn(1, 78, CONFIG.context_dim)
    conditions = {
        "motion": torch.randn(1, 2, FRAMES, 8 * LATENT, 8 * LATENT),
        "depth": torch.randn(1, 1, FRAMES, 12 * LATENT, 12 * LATENT),
    }

    def embedded() -> Tensor:
        return sum(unet.encode_condition(name, tensor, size) for name, tensor in conditions.items())

    def original_run() -> None:
        for _ in range(STEPS):
            unet(x, t, context, embedded())

    def our_run() -> None:
        stc = embedded()
        for _ in range(STEPS):
            unet(x, t, context, stc)

    print(f"{STEPS} steps, conditions in every step / once per clip: {ratio(original_run, our_run):.2f}")

    attention = unet.encoder[0].spatial.block.attn2
    tokens = torch.randn(FRAMES, LATENT * LATENT, CONFIG.width)
    repeated = context.repeat_interleave(FRAMES, 0)
    once = ratio(lambda: attention(tokens, repeated), lambda: attention(tokens, context))
    print(f"cross-attention, keys and values per frame / per clip: {once:.2f}")

    block, frames = TemporalConv(CONFIG.width, 0.0, torch.nn).eval(), torch.randn(FRAMES, CONFIG.width, 32, 32)
    torch.testing.assert_close(
        block(frames, FRAMES), original_temporal_conv(block, frames, FRAMES), rtol=1e-3, atol=1e-4
    )
    flat = ratio(lambda: original_temporal_conv(block, frames, FRAMES), lambda: block(frames, FRAMES))
    print(f"temporal convolutions, in 3D / in 2D over (f, h w): {flat:.2f}")


if __name__ == "__main__":
    main()
