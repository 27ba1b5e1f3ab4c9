"""Draw previews of conditions; motion fields are drawn as colour-wheel colours or as arrows.

Both accept any motion field: dense fields, and the sparse `points` of the released network. All frames of a clip use
the same scale.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..conditions import CONDITIONS
from ..errors import UserError
from ..video import resize_crop
from .sources import Source

SMALLEST = 256
"""The least shorter side of images with arrows, so that arrows on a frame of 64 pixels are visible."""

_CELLS = 16  # of the grid of arrows, along the shorter side
_SMOOTH = 3  # arrows are drawn this many times larger and scaled down, for smooth edges
_ARROW, _OUTLINE = (255, 224, 32), (16, 16, 16)


def picture_of(name: str, tensor: Tensor, source: Source | None = None) -> Tensor:
    """Draw a condition `(1, C, F, H, W)` as images `(1, 1 or 3, F, H, W)` in [0, 1]; motion on a source."""
    tensor, row = tensor.float(), CONDITIONS[name]
    if name == "motion":
        return flow_picture(tensor) if source is None else arrows_picture(tensor, source.frames("motion"))
    if name == "depth":
        return tensor / tensor.amax().clamp(min=1e-6)
    return (tensor[:, :3] - row.low) / (row.high - row.low)  # of a mask only RGB, without the keep map


def flow_picture(field: Tensor, full: float | None = None) -> Tensor:
    """Draw a motion field (1, 2, F, H, W) as colours (1, 3, F, H, W) in [0, 1]: white where nothing moves.

    Hue is the direction and saturation the length, on the colour wheel of the Middlebury flow benchmark (torchvision's
    `flow_to_image`; right is red, up violet, left cyan, down yellow). Vectors of a sparse field, at single pixels, fill
    their surroundings. `full` is the length, in the field's unit, at which colours are saturated; by default twice the
    mean length of moving pixels without the longest hundredth, so that a few outliers do not make the rest pale.
    Raises UserError if the tensor is not a motion field.
    """
    from torchvision.utils import flow_to_image

    length = _length(field)
    if _is_sparse(length):
        field = _filled(field, length)
        length = _length(field)
    full = _typical(length) * 2 if full is None else full
    frames = (field[0] / full / length.div(full).clamp_min(1)).transpose(0, 1).float()  # (F, 2, H, W), at most 1 long
    # flow_to_image saturates at the longest vector of its input: an extra frame of length 1 sets that.
    scale = torch.zeros_like(frames[:1])
    scale[:, 0] = 1
    colours = flow_to_image(torch.cat([frames, scale]))[:-1]
    return colours.transpose(0, 1)[None].float() / 255


def arrows_picture(field: Tensor, frames: Tensor | None = None, gain: float | None = None) -> Tensor:
    """Draw a motion field (1, 2, F, H, W) as arrows on the frames, (1, 3, F, H', W') in [0, 1].

    Both are enlarged so that the shorter side has at least `SMALLEST` pixels. In every cell of a grid, the longest
    vector is drawn: its head at its own position, its tail where the content came from. Cells without vectors stay
    empty, so that sparse fields show where they have vectors.

    Args:
        frames: (1, 3, F or 1, h, w) in [0, 1], scaled to cover the field and centre-cropped; None: a grey background.
        gain: arrow length divided by vector length; by default, nine of ten arrows stay within 1.25 cells.

    Raises:
        UserError: the tensor is not a motion field, or frames of another shape or number.
    """
    length = _length(field)
    count, height, width = length.shape
    scale = max(1, -(-SMALLEST // min(height, width)))
    ground = _ground(frames, count, (height * scale, width * scale))
    cell = max(1, round(min(height, width) / _CELLS))
    arrows = [
        _longest_per_cell(*frame, cell, 1e-3 * float(length.max()))
        for frame in zip(field[0].unbind(1), length, strict=True)
    ]
    gain = _gain([vectors for vectors, _ in arrows], cell) if gain is None else gain
    images = [_draw_arrows(frame, *pair, scale, gain) for frame, pair in zip(ground, arrows, strict=True)]
    return torch.from_numpy(np.stack(images)).permute(3, 0, 1, 2)[None].float() / 255


def _length(field: Tensor) -> Tensor:
    """The lengths (F, H, W) of a field's vectors."""
    if field.ndim != 5 or field.shape[:2] != (1, 2) or not torch.isfinite(field).all():
        raise UserError(
            f"Expected a motion field of shape (1, 2, frames, height, width) with finite values, got "
            f"{tuple(field.shape)}."
        )
    return torch.hypot(*field[0])


def _typical(length: Tensor) -> float:
    """The mean length of moving pixels, without outliers; 1 if nothing moves."""
    moving = length[length > 0].cpu().numpy()
    if not len(moving):
        return 1.0
    longest = np.quantile(moving, 0.99)
    return float(moving[(moving > 0.05 * longest) & (moving <= longest)].mean())


def _is_sparse(length: Tensor) -> bool:
    """Whether moving pixels almost never have only moving neighbours."""
    moving = (length > 0).float()
    surrounded = -F.max_pool2d(-moving[:, None], 3, stride=1, padding=1)
    return bool(surrounded.sum() < 0.05 * moving.sum())


def _filled(field: Tensor, length: Tensor) -> Tensor:
    """Give each pixel the longest vector near it, within about the size of the released motion blocks."""
    reach = 2 * (min(length.shape[-2:]) // 42) + 1  # 16 pixels of 336
    _, index = F.max_pool2d(length[:, None], reach, stride=1, padding=reach // 2, return_indices=True)
    index = index[:, 0].flatten(1).expand(2, -1, -1)  # (2, F, H·W)
    return field[0].flatten(2).gather(2, index).unflatten(2, length.shape[-2:])[None]


def _gain(vectors: list[np.ndarray], cell: int) -> float:
    """The gain at which nine of ten vectors stay within 1.25 cells; 1 if there are no vectors."""
    lengths = np.hypot(*np.concatenate(vectors).T)
    return float(1.25 * cell / np.quantile(lengths, 0.9)) if len(lengths) else 1.0


def _ground(frames: Tensor | None, count: int, size: tuple[int, int]) -> np.ndarray:
    """The background of the arrows: (F, H', W', 3) bytes."""
    if frames is None:
        frames = torch.full((1, 3, 1, 1, 1), 0.45)
    if frames.ndim != 5 or frames.shape[:2] != (1, 3) or frames.shape[2] not in (1, count):
        raise UserError(
            f"The frames under the arrows have shape {tuple(frames.shape)}. Expected (1, 3, {count} or 1, height, "
            "width), like the motion field."
        )
    # Enlarge by an integer factor if possible, so that a small frame is not blurred.
    exact = [side % own for side, own in zip(size, frames.shape[-2:], strict=True)] == [0, 0]
    frames = resize_crop(frames.detach().float().cpu(), size, "nearest" if exact else "bilinear", antialias=not exact)
    frames = frames.clamp(0, 1).expand(-1, -1, count, -1, -1)
    return (frames[0] * 255).round().byte().permute(1, 2, 3, 0).numpy()


def _longest_per_cell(field: Tensor, length: Tensor, cell: int, least: float) -> tuple[np.ndarray, np.ndarray]:
    """The longest vector of each cell of one frame (2, H, W), if longer than `least`: vectors (N, 2), and their
    positions (N, 2) as x, y in pixels."""
    y, x = (((torch.arange(side) % cell) + 0.5) / cell - 0.5 for side in length.shape)
    score = length.cpu() * (1 - 0.02 * torch.hypot(y[:, None], x))  # among equal lengths, the middle wins
    best, index = F.max_pool2d(score[None], cell, ceil_mode=True, return_indices=True)
    index = index[best > least]
    y, x = index // length.shape[1], index % length.shape[1]
    return field.cpu()[:, y, x].T.numpy(), torch.stack([x, y], dim=1).numpy() + 0.5


def _draw_arrows(ground: np.ndarray, vectors: np.ndarray, places: np.ndarray, scale: int, gain: float) -> np.ndarray:
    """Draw arrows on one frame (H', W', 3) of bytes; vectors and positions are in pixels of the field."""
    from PIL import Image, ImageDraw

    height, width, _ = ground.shape
    # Colour and coverage are separate, so that the frame itself is not resampled.
    ink = Image.new("RGBA", (width * _SMOOTH, height * _SMOOTH), (*_OUTLINE, 0))
    draw = ImageDraw.Draw(ink)
    unit = _SMOOTH * max(1.0, min(height, width) / SMALLEST)
    heads = places * scale * _SMOOTH
    tails = heads - vectors * gain * scale * _SMOOTH
    for color, border in ((_OUTLINE, 1.0), (_ARROW, 0.0)):  # all outlines first, so that arrows do not cut each other
        for head, tail in zip(heads, tails, strict=True):
            _draw_arrow(draw, head, tail, color, unit, border * unit)
    ink = ink.resize((width, height), Image.Resampling.BOX)
    return np.array(Image.alpha_composite(Image.fromarray(ground).convert("RGBA"), ink).convert("RGB"))


def _draw_arrow(draw, head: np.ndarray, tail: np.ndarray, color: tuple, unit: float, border: float) -> None:
    vector = head - tail
    length = float(np.hypot(*vector))
    forward = vector / max(length, 1e-9)
    side = np.array([-forward[1], forward[0]])
    point = min(5.0 * unit, max(length, 2.5 * unit))  # length of the head: short arrows are only heads
    half, thick = 0.45 * point + border, 1.2 * unit + 2 * border
    back = head - forward * point
    if length > point:
        draw.line([*(tail - forward * border), *back], fill=(*color, 255), width=max(1, round(thick)))
    base = back - forward * border
    corners = [head + forward * 1.5 * border, base + side * half, base - side * half]
    draw.polygon([tuple(map(float, corner)) for corner in corners], fill=(*color, 255))
