"""Draw sketches, bright lines on dark in 0..1: with the released networks, as edges, or from a drawing."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ...config import ExtractionConfig
from ...errors import UserError
from ..annotators import IMAGENET, Folders, as_folders, locate, normalised, per_frame, what_to_get
from .pidinet import PiDiNet, load_pidinet
from .simplify import Simplifier, load_simplifier

METHODS = ("auto", "pidinet", "edges")
RELEASED_FILES = ("table5_pidinet.pth", "sketch_simplification_gan.pth")
"""The files of `pidinet`: the edge detector, then the simplifier."""

# Thresholds on the gradient, in brightness per pixel, of an image in [0, 1] with REFERENCE rows: below FAINT nothing is
# drawn, at FULL a line is fully bright. They are fixed, not relative to a clip's maximum, so that training and
# inference agree on what a line is.
FAINT, FULL = 0.03, 0.12
REFERENCE = 96
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Sketcher:
    """A sketch method, "pidinet" or "edges", its networks' files, and its function from RGB (N, 3, H, W) in [0, 1] to
    sketches (N, 1, H, W)."""

    which: str
    files: tuple[Path, ...]
    draw: Callable[[Tensor], Tensor]


def as_trained(method: str, extraction: ExtractionConfig) -> str:
    """Resolve a method for a checkpoint: `auto` means edges for a checkpoint that was trained on edges."""
    return "edges" if method == "auto" and extraction.sketch == "edges" else method


def load_sketcher(method: str = "auto", device: str | torch.device = "cpu", models: Folders = None) -> Sketcher:
    """Load a sketch method on a device; it draws bright lines in 0..1, for frames of at least 8 x 8 pixels.

    The released pipeline draws at 384 x 384; lines have the released width only at that size.

    Args:
        method: "pidinet", as released: PiDiNet's edges, cleaned by the simplification network, without a threshold;
            "edges": `edges`, which requires no file; "auto": "pidinet" if its two files are found, else "edges".
        models: folders to search; by default `vc_core.published.model_folders`.

    Raises:
        UserError: an unknown method; a missing file of "pidinet", with its description; a damaged file.
    """
    if method not in METHODS:
        raise UserError(f"Unknown sketch method '{method}'. Expected one of {', '.join(METHODS)}.")
    files = {} if method == "edges" else locate(RELEASED_FILES, models)
    missing = [name for name in RELEASED_FILES if name not in files]
    if not missing:
        detector, simplifier = paths = tuple(files[name] for name in RELEASED_FILES)
        draw = released_sketch(load_pidinet(detector).to(device), load_simplifier(simplifier).to(device))
        return Sketcher("pidinet", paths, lambda frames: draw(frames.to(device)))
    if method == "pidinet":
        folders = ", ".join(map(str, as_folders(models)))
        raise UserError(
            f"The sketch method 'pidinet' requires {' and '.join(missing)}, not found in {folders}. "
            f"{what_to_get(missing, models)}, or use the method 'edges'."
        )
    if files:
        warnings.warn(
            f"PiDiNet's sketches require {missing[0]} in addition to {' and '.join(files)}, so edges are used. "
            f"{what_to_get(missing, models)}.",
            stacklevel=2,
        )
    return Sketcher("edges", (), lambda frames: _lines(frames.to(device)))


def released_sketch(detector: PiDiNet, simplifier: Simplifier) -> Callable[[Tensor], Tensor]:
    """The released pipeline (tools/videocomposer/inference_single.py): RGB (N, 3, H, W) in [0, 1] to (N, 1, H, W).

    The detector's input is normalized RGB and its lines are bright; the simplifier's input and output have dark lines.
    """
    return lambda frames: 1 - simplifier(1 - detector(normalised(frames, IMAGENET)))


def edges(video: Tensor) -> Tensor:
    """Draw thin edges of a video: (B, 3, F, H, W) in [0, 1] -> (B, 1, F, H, W) in 0..1, bright lines.

    Canny's first three steps on each colour channel (Gaussian blur, gradient, thinning across the edge; the strongest
    channel counts, so that edges between equally bright colours are found), then a fixed ramp instead of Canny's
    binary hysteresis, which would flicker. Blur, gradients and line width scale with the frame height: the same scene
    gives the same drawing at 96 and at 384.
    """
    # In small batches: on a CPU, convolutions of one large batch are several times slower.
    return per_frame(_lines, video, "sketch", 16 if video.device.type == "cpu" else 256)


def _lines(frames: Tensor) -> Tensor:
    """`edges` of single frames: (N, 3, H, W) -> (N, 1, H, W)."""
    n, _, h, w = frames.shape
    scale = max(1.0, min(h, w) / REFERENCE)
    planes = blurred(frames.flatten(0, 1), 0.8 * scale, round(2 * scale))
    dx, dy = (gradient.mul_(scale).unflatten(0, (n, -1)) for gradient in _sobel(planes))
    dx, dy, strength = _strongest(dx, dy)
    lines = ((_thinned(strength, dx, dy) - FAINT) / (FULL - FAINT)).clamp(0, 1)
    width = 2 * (round(scale) // 3) + 1
    return F.max_pool2d(lines, width, stride=1, padding=width // 2) if width > 1 else lines


def blurred(planes: Tensor, sigma: float, radius: int) -> Tensor:
    """Gaussian blur of planes (N, H, W), with replicated borders."""
    weights = [math.exp(-(at**2) / (2 * sigma**2)) for at in range(-radius, radius + 1)]
    weights = [weight / sum(weights) for weight in weights]
    result = F.pad(planes[:, None], (radius,) * 4, mode="replicate")[:, 0]
    # On a CPU, sums of shifted planes are faster than convolutions of a single channel.
    for axis in (-1, -2):
        shifted = [result.narrow(axis, at, planes.shape[axis]) for at in range(2 * radius + 1)]
        result = shifted[0] * weights[0]
        for plane, weight in zip(shifted[1:], weights[1:], strict=True):
            result.add_(plane, alpha=weight)
    return result


def _sobel(planes: Tensor) -> tuple[Tensor, Tensor]:
    """Sobel gradients of planes (N, H, W), across and down, normalized to differences per pixel."""
    padded = F.pad(planes[:, None], (1,) * 4, mode="replicate")[:, 0]
    across = padded[..., 2:] - padded[..., :-2]
    down = padded[..., 2:, :] - padded[..., :-2, :]
    dx = across[:, :-2].add(across[:, 1:-1], alpha=2).add_(across[:, 2:]).div_(8)
    dy = down[..., :-2].add(down[..., 1:-1], alpha=2).add_(down[..., 2:]).div_(8)
    return dx, dy


def _strongest(dx: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of the channel with the strongest gradient: (N, C, H, W) twice -> dx, dy, strength (N, 1, H, W)."""
    squared = dx * dx + dy * dy
    best_dx, best_dy, best = dx[:, :1], dy[:, :1], squared[:, :1]
    for number in range(1, dx.shape[1]):  # on a CPU several times faster than argmax and gather
        channel = slice(number, number + 1)
        stronger = squared[:, channel] > best
        best_dx = torch.where(stronger, dx[:, channel], best_dx)
        best_dy = torch.where(stronger, dy[:, channel], best_dy)
        best = torch.maximum(best, squared[:, channel])
    return best_dx, best_dy, best.sqrt()


def _thinned(strength: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    """Keep the strength where it is a maximum along its gradient, else zero; all (N, 1, H, W)."""
    # The gradient's direction, rounded to 45°: 0 horizontal, 1 down-right, 2 vertical, 3 down-left.
    direction = (torch.atan2(dy, dx) * (4 / torch.pi)).round().long().remainder(4)
    h, w = strength.shape[-2:]
    padded = F.pad(strength, (1, 1, 1, 1))
    maximum = torch.zeros_like(strength, dtype=torch.bool)
    for number, (right, down) in enumerate([(1, 0), (1, 1), (0, 1), (-1, 1)]):
        ahead = padded[..., 1 + down : 1 + down + h, 1 + right : 1 + right + w]
        behind = padded[..., 1 - down : 1 - down + h, 1 - right : 1 - right + w]
        # Strict on one side, so that exactly one of two equal neighbours remains.
        maximum |= (direction == number) & (strength > ahead) & (strength >= behind)
    return strength * maximum


def as_sketch(drawing: Tensor, lines: str = "bright") -> Tensor:
    """Convert a drawing to a sketch with bright lines: (B, 3|1, ...) in [0, 1] -> (B, 1, ...) in 0..1.

    `lines` are the drawing's: "bright" on dark (kept), or "dark" on bright (inverted). Raises UserError for any other
    word.
    """
    if lines not in ("bright", "dark"):
        raise UserError(f'Unknown sketch lines {lines!r}. Expected "bright" (on dark) or "dark" (on bright).')
    if drawing.shape[1] == 3:
        luma = drawing.new_tensor(_LUMA).reshape(1, 3, *(1,) * (drawing.dim() - 2))
        drawing = (drawing * luma).sum(dim=1, keepdim=True)
    return (1 - drawing if lines == "dark" else drawing).clamp(0, 1)
