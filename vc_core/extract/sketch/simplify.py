"""The sketch-simplification network, which cleans the released pipeline's edges (Simo-Serra et al., Mastering
Sketching, arXiv 1703.08966)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...checkpoint.files import open_tensors
from ...checkpoint.origins import Origin, fill

MEAN, STD = 0.9664114577640158, 0.0858381272736797
"""Statistics of the drawings that the released file, `sketch_simplification_gan.pth`, was trained on."""

CHANNELS = (
    *(48, 128, 128),  # at half the size
    *(128, 256, 256),  # at a quarter of the size
    *(256, 512, 1024, 1024, 1024, 1024, 512, 256),  # at an eighth of the size
    *(256, 256, 128),  # and back
    *(128, 128, 48),
    *(48, 24, 1),
)
"""Output channels of the 23 convolutions, as released."""

_DOWN, _UP = (0, 3, 6), (14, 17, 20)  # the convolutions that halve the size, and those that double it


class Simplifier(nn.Module):
    """Clean a rough drawing (N, 1, H, W) in [0, 1], lines DARK. The result has the same size and dark lines.

    The network requires multiples of 8: other sizes are padded by replicating the border, and cropped afterwards.
    """

    def __init__(self, channels: Sequence[int] = CHANNELS):
        super().__init__()
        layers: list[nn.Module] = []
        for number, (inputs, outputs) in enumerate(zip((1, *channels), channels, strict=False)):
            kernel, stride = 5 if number == 0 else 3, 2 if number in _DOWN else 1
            plain = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)
            layers += [nn.ConvTranspose2d(inputs, outputs, 4, 2, 1) if number in _UP else plain, nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1], nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        x = F.pad((x - MEAN) / STD, (0, -w % 8, 0, -h % 8), mode="replicate")
        return self.layers(x)[..., :h, :w]


def load_simplifier(path: str | Path) -> Simplifier:
    """Load the network from its released file, with the file's numbers of channels.

    Raises:
        UserError: the file is missing, damaged, or belongs to another model.
    """
    tensors = open_tensors(path)
    # If a bias is missing, `fill` raises.
    biases = [tensors.shapes.get(f"layers.{2 * number}.bias") for number in range(len(CHANNELS))]
    channels = [bias[0] if bias else most for bias, most in zip(biases, CHANNELS, strict=True)]
    with torch.device("meta"):
        network = Simplifier(channels)
    layout = {name: Origin((name,), tuple(parameter.shape)) for name, parameter in network.state_dict().items()}
    fill(network, layout, tensors, "the sketch-simplification network")
    return network.eval().requires_grad_(False)
