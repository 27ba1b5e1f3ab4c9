"""PiDiNet, the edge detector of the released pipeline (Su et al., Pixel Difference Networks for Efficient Edge
Detection, arXiv 2108.07009), with its pixel-difference convolutions folded into plain ones.

A pixel-difference convolution weights differences of pixels: between each pixel and the centre, between neighbours
around the centre, or between the outer and the inner ring. Each is linear, so a plain convolution with other weights
replaces it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...checkpoint.files import open_tensors
from ...checkpoint.origins import Layout, Origin, check

_BLOCKS = (3, 4, 4, 4)
_DILATIONS = (5, 7, 9, 11)
_AROUND = (0, 1, 2, 5, 8, 7, 6, 3)  # a 3x3 kernel's positions around its centre, clockwise


def fold_central(weight: Tensor) -> Tensor:
    """Differences with the centre: (O, I, 3, 3) as released -> the plain (O, I, 3, 3)."""
    plain = weight.clone()
    plain[..., 1, 1] -= weight.sum(dim=(2, 3))
    return plain


def fold_angular(weight: Tensor) -> Tensor:
    """Differences with the next position around the centre: (O, I, 3, 3) as released -> the plain (O, I, 3, 3)."""
    flat = weight.flatten(2)
    plain = torch.zeros_like(flat)
    plain[..., _AROUND] = flat[..., _AROUND] - flat[..., _AROUND].roll(1, -1)
    return plain.view_as(weight)


def fold_radial(weight: Tensor) -> Tensor:
    """Differences between the outer and the inner ring: (O, I, 3, 3) as released -> the plain (O, I, 5, 5).

    The first of the nine numbers is not used; the other eight are a ring, row by row.
    """
    ring = weight.flatten(2)[..., 1:]
    centre = torch.zeros_like(ring[..., :1])
    ring = torch.cat([ring[..., :4], centre, ring[..., 4:]], dim=-1).view_as(weight)
    plain = F.pad(-ring, (1, 1, 1, 1))
    plain[..., ::2, ::2] += ring
    return plain


# The kinds of the 16 convolutions, in a cycle: the first convolution, then the depthwise convolution of every block.
_FOLDS: tuple[Callable[[Tensor], Tensor], ...] = (fold_central, fold_angular, fold_radial, lambda weight: weight)
_KERNELS = (3, 3, 5, 3)


class SeparableBlock(nn.Module):
    """A depthwise and a pointwise convolution with a residual; the first block of a stage may halve the size."""

    def __init__(self, inputs: int, outputs: int, kernel: int, halves: bool):
        super().__init__()
        self.halves = halves
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if halves else nn.Identity()
        self.depthwise = nn.Conv2d(inputs, inputs, kernel, padding=kernel // 2, groups=inputs, bias=False)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(x, 2) if self.halves else x
        return self.pointwise(F.relu(self.depthwise(x))) + self.shortcut(x)


class Side(nn.Module):
    """An edge map, as logits (N, 1, h, w), from a stage's features (N, C, h, w): dilation, attention, sum."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, width, 1)
        self.dilated = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False) for dilation in _DILATIONS
        )
        self.attention = nn.Sequential(nn.Conv2d(width, 4, 1), nn.Conv2d(4, 1, 3, padding=1, bias=False))
        self.reduce = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(F.relu(x))
        x = sum(conv(x) for conv in self.dilated)
        return self.reduce(x * self.attention(F.relu(x)).sigmoid())


class PiDiNet(nn.Module):
    """Detect edges (N, 1, H, W) in 0..1, bright, in images (N, 3, H, W) normalized with ImageNet's statistics. H and W
    are at least 8.

    Args:
        width: channels of the first stage; released 60 (and 30 and 20 in the smaller files of its authors).
        side_width: channels of the side networks; released 24 (12, 8).
    """

    def __init__(self, width: int = 60, side_width: int = 24):
        super().__init__()
        channels, number = (width, 2 * width, 4 * width, 4 * width), 1
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.stages, self.sides = nn.ModuleList(), nn.ModuleList()
        inputs = width
        for stage, (outputs, blocks) in enumerate(zip(channels, _BLOCKS, strict=True)):
            self.stages.append(nn.Sequential())
            for block in range(blocks):
                self.stages[-1].append(SeparableBlock(inputs, outputs, _KERNELS[number % 4], stage > 0 and block == 0))
                inputs, number = outputs, number + 1
            self.sides.append(Side(outputs, side_width))
        self.fuse = nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        size, maps = x.shape[-2:], []
        x = self.stem(x)
        for stage, side in zip(self.stages, self.sides, strict=True):
            x = stage(x)
            maps.append(F.interpolate(side(x), size, mode="bilinear", align_corners=False))
        return self.fuse(torch.cat(maps, dim=1)).sigmoid()


def load_pidinet(path: str | Path) -> PiDiNet:
    """Load PiDiNet from its authors' file, `table5_pidinet.pth` (kinds "carv4"), folded, with the file's widths.

    Raises:
        UserError: the file is missing, damaged, or belongs to another model.
    """
    tensors = open_tensors(path)
    if any(name.startswith("module.") for name in tensors.shapes):  # saved by its authors' nn.DataParallel
        tensors = tensors.below("module.")
    # If a tensor is missing, `check` raises.
    width, side_width = (
        (tensors.shapes.get(name) or (released,))[0]
        for name, released in (("init_block.weight", 60), ("dilations.0.conv1.weight", 24))
    )
    with torch.device("meta"):
        network = PiDiNet(width, side_width)
    layout = released_layout(network)
    check(layout, tensors, "PiDiNet")
    get, state = tensors.get(), {}
    for name, origin in layout.items():
        state[name] = origin.join(get, origin.shape).float()
    # The parameters that the file stores as pixel differences, in the order of their kinds.
    for number, name in enumerate(["stem.weight", *(name for name in state if name.endswith(".depthwise.weight"))]):
        state[name] = _FOLDS[number % 4](state[name])
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)


def released_layout(network: PiDiNet) -> Layout:
    """Return where the released file stores the parameters. The folded 5x5 kernels have 3x3 numbers there."""
    modules, layout = dict(_released_modules()), {}
    for name, parameter in network.state_dict().items():
        module, _, kind = name.rpartition(".")
        shape = tuple(3 if side == 5 else side for side in parameter.shape[2:])
        layout[name] = Origin((f"{modules[module]}.{kind}",), (*parameter.shape[:2], *shape))
    return layout


def _released_modules() -> Iterator[tuple[str, str]]:
    """Our modules' names and the released ones."""
    yield "stem", "init_block"
    yield "fuse", "classifier"
    for stage, blocks in enumerate(_BLOCKS):
        for block in range(blocks):
            for ours, released in (("shortcut", "shortcut"), ("depthwise", "conv1"), ("pointwise", "conv2")):
                yield f"stages.{stage}.{block}.{ours}", f"block{stage + 1}_{block + 1}.{released}"
        yield f"sides.{stage}.squeeze", f"dilations.{stage}.conv1"
        for number in range(len(_DILATIONS)):
            yield f"sides.{stage}.dilated.{number}", f"dilations.{stage}.conv2_{number + 1}"
        for number in range(2):
            yield f"sides.{stage}.attention.{number}", f"attentions.{stage}.conv{number + 1}"
        yield f"sides.{stage}.reduce", f"conv_reduces.{stage}.conv"
