"""How much memory a prediction takes beside the weights."""

from __future__ import annotations

from ..config import UNetConfig

# Elements alive at once for each position of the latent, counted operation by operation on networks without memory:
# 21 to 41 times the width in the UNet, whatever the size; 293 for each channel of an STC-encoder's first convolution
# where that runs at 12 times the latent's size, and else as the square of it. Attention is taken to need no memory of
# the order of its matrix.
UNET, STC = 45, 300


def activation_elements(
    config: UNetConfig, batch: int, frames: int, height: int, width: int, condition_scale: int | None = None
) -> int:
    """Elements that a prediction of latents `(batch, 4, frames, height, width)` holds at most, weights left out.

    The conditions, one video's, are embedded one after the other and before the UNet runs; `condition_scale` is the
    checkpoint's `ExtractionConfig.condition_scale`.
    """
    stc = STC * (condition_scale or 12) ** 2 // 144
    positions = frames * height * width
    return max(UNET * config.width * batch, stc * 4 * config.stc_channels) * positions
