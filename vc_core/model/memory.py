"""How much memory a prediction takes beside the weights."""

from __future__ import annotations

from ..config import UNetConfig

# Elements alive at once for each position of the latent, counted operation by operation on networks without memory. In
# the UNet most are in the first temporal Transformer, 19 times the width of its tokens and twice the level's; where
# they are narrower than the level, elsewhere at the full size, at most 29 times the level's width. In an STC-encoder
# they are 293 for each channel of its first convolution where that runs at 12 times the latent's size, and else as the
# square of it. Attention is taken to need no memory of the order of its matrix.
TOKENS, LEVEL, STC = 27, 3, 300


def activation_elements(
    config: UNetConfig, batch: int, frames: int, height: int, width: int, condition_scale: int | None = None
) -> int:
    """Elements that a prediction of latents `(batch, 4, frames, height, width)` holds at most, weights left out.

    The conditions, one video's, are embedded one after the other and before the UNet runs; `condition_scale` is the
    checkpoint's `ExtractionConfig.condition_scale`.
    """
    stc = STC * (condition_scale or 12) ** 2 // 144
    positions = frames * height * width
    tokens = max(config.temporal_in_heads * config.head_dim, config.width)
    unet = TOKENS * tokens + LEVEL * config.width
    return max(unet * batch, stc * 4 * config.stc_channels) * positions
