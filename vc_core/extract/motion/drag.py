"""Cut and drag: an image moved by hand-made motion, as a rough draft of a video (Time-to-Move, arXiv 2511.08633)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...video import resize_crop
from ..drawing import eased, pixel_centers, place
from ..keyframes import Draft
from .camera import CameraMove
from .tracks import Track, resample_track, visible_at

POINTS = 3
"""Points of the image per pixel and axis: enough to stretch it threefold without gaps."""
MOVES = 0.5
"""Pixels. What never moves farther from its place is not part of the moved region."""
OUTLINE = 2
"""Width of the outline of what moves, in pixels."""
_IN_FRONT = 1000.0


Paths = Callable[[Tensor], Tensor]
"""Where points of the first frame, (N, 2) as x and y in pixels of the video, are in each frame, (F, N, 2)."""


def drag(image: Tensor, size: tuple[int, int], paths: Paths, inside: float, outside: float, grow: int = 4) -> Draft:
    """Return a draft of a video in which the points of an image move.

    What moves covers what does not. The holes that it leaves, also at the frame's edge, are filled from their
    surroundings.

    Args:
        image: `(1, 3, H, W)` in [0, 1], the first frame; scaled and centre-cropped to `size`.
        size: (height, width) of the video.
        paths: see `Paths`, `camera_paths` and `tracks_paths`.
        inside, outside: the mask's values for what moves, and for the rest: see `compose`. With a lower value, it
            follows the draft more closely.
        grow: how far the moved region is extended on all sides, in pixels.
    """
    image = resize_crop(image.float(), size)
    start = _grid(size)  # (N, 2)
    displacement = paths(start) - start  # (F, N, 2)
    moves = displacement.norm(dim=2).amax(0) > MOVES
    values = torch.cat([_sampled(image, start), moves[:, None].float()], dim=1)
    # What moves unlike the frame's edge is in front.
    front = ((displacement - _of_edge(start, displacement, size)).norm(dim=2).amax(0) > MOVES).float()
    video, region = [image], [_splatted(start, values, torch.ones(len(start)), size)[0][:, 3:]]
    # The outline of what moves is a blend of both: it must not stay behind.
    outline = _sampled(F.max_pool2d(region[0], 2 * OUTLINE + 1, stride=1, padding=OUTLINE), start)[:, 0] > 0
    stays = (moves | ~outline).float()
    values = torch.cat([values, front[:, None]], dim=1)
    for shift in displacement[1:]:
        mean, weight = _splatted(start + shift, values, stays * (1 + _IN_FRONT * front), size)
        behind = filled(mean[:, :3], (weight > 0) & (mean[:, 4:] < 0.5))  # holes show what is behind
        video.append(torch.where(weight > 0, mean[:, :3], behind))
        region.append(mean[:, 3:4])
    region = F.max_pool2d((torch.cat(region) > 0.5).float(), 2 * grow + 1, stride=1, padding=grow)  # (F, 1, H, W)
    mask = torch.where(region > 0, inside, outside)
    return Draft(torch.stack(video, dim=2).clamp(0, 1), mask.transpose(0, 1)[None])


def _of_edge(start: Tensor, displacement: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the displacement (F, N, 2) of a camera that moves the frame's edge as the points there move.

    It is fitted by least squares, at last to the half of the edge that it fits best: an object may cross the edge.
    """
    edge = ((start < 1) | (start > start.new_tensor(size[::-1]) - 1)).any(1)
    points = torch.cat([start / max(size), torch.ones(len(start), 1)], dim=1)  # (N, 3)
    x, y = points[edge], displacement[:, edge].transpose(0, 1).flatten(1)  # (E, 3), (E, 2 F)
    fit = torch.linalg.lstsq(x, y).solution
    wrong = (x @ fit - y).norm(dim=1)
    best = wrong <= wrong.median() + 1e-3
    fit = torch.linalg.lstsq(x[best], y[best]).solution
    return (points @ fit).unflatten(1, (len(displacement), 2)).transpose(0, 1)


def camera_paths(move: CameraMove, frames: int, size: tuple[int, int], points: Tensor) -> Tensor:
    """The `Paths` of a camera move: the exact similarities of `camera_field`."""
    center = points.new_tensor([size[1] / 2, size[0] / 2])
    pan = points.new_tensor([move.pan[0] * size[1], move.pan[1] * size[0]])
    moved = [points]
    for fraction in eased(frames, move.easing).diff().tolist():
        factor, angle = move.zoom**fraction, -math.radians(move.roll) * fraction
        x, y = (moved[-1] - center).unbind(1)
        turned = torch.stack([x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)], 1)
        moved.append(center + factor * turned - fraction * pan)
    return torch.stack(moved)


def tracks_paths(
    tracks: Sequence[Track],
    frames: int,
    size: tuple[int, int],
    points: Tensor,
    canvas: tuple[int, int] | None = None,
    radius: float | None = None,
    mask: Tensor | None = None,
    spacing: str = "index",
    easing: str = "linear",
) -> Tensor:
    """The `Paths` of tracks: each moves the content of its box, or what is within `radius` of its first point, as one.

    The other arguments are those of `tracks_field`; of a mask of several frames, the first is used.
    """
    placement = place(canvas, size)
    if radius is None and mask is None:
        radius = min(canvas or size) / 8
    on_canvas = (points - points.new_tensor([placement.left, placement.top])) / placement.scale
    region = torch.ones(len(points))
    if mask is not None:
        first = resize_crop(mask[:, :, :1].float() if mask.ndim == 5 else mask[:, :, None].float(), size)
        region = (_sampled(first[:, :, 0], points)[:, 0] > 0.5).float()
    total, count = torch.zeros(frames, *points.shape), torch.zeros(len(points))
    for track in tracks:
        path = placement.to_video(resample_track(track.points, frames, spacing, easing)).float()
        steps = path.diff(dim=0, prepend=path[:1])
        if track.visible is not None:
            visible = visible_at(track, frames, spacing, easing)
            steps = steps * (visible & visible.roll(1))[:, None]
        inside = region
        if track.box is not None:
            inside = inside * track.box.covers(*on_canvas.unbind(1)).float()
        elif radius is not None:
            inside = inside * ((points - path[0]).norm(dim=1) <= radius * placement.scale)
        total += steps.cumsum(0)[:, None] * inside[:, None]
        count += inside
    return points + total / count.clamp_min(1)[:, None]


def filled(color: Tensor, known: Tensor) -> Tensor:
    """Fill the pixels of images `(B, C, H, W)` that are not known `(B, 1, H, W)`, bool, from the nearest ones, by
    averages of growing blocks."""
    size = color.shape[-2:]
    if known.all() or max(size) == 1:
        return color
    options = {"kernel_size": 2, "ceil_mode": True, "count_include_pad": False}
    weight = F.avg_pool2d(known.float(), **options)
    mean = F.avg_pool2d(color * known, **options) / weight.clamp_min(1e-6)
    coarse = filled(mean, weight > 0)
    return torch.where(known, color, F.interpolate(coarse, size=size, mode="bilinear", align_corners=False))


def _grid(size: tuple[int, int]) -> Tensor:
    """Return points (N, 2) as x and y, `POINTS` per pixel and axis."""
    x, y = pixel_centers(tuple(side * POINTS for side in size))
    return torch.stack(torch.broadcast_tensors(x / POINTS, y / POINTS), dim=-1).flatten(0, 1).float()


def _sampled(image: Tensor, points: Tensor, mode: str = "bilinear") -> Tensor:
    """Sample an image (1, C, H, W) at points (N, 2); the edge continues outside. Returns (N, C)."""
    height, width = image.shape[-2:]
    grid = points / points.new_tensor([width, height]) * 2 - 1
    sampled = F.grid_sample(image, grid[None, None], mode, padding_mode="border", align_corners=False)
    return sampled[0, :, 0].T


def _splatted(points: Tensor, values: Tensor, weight: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Average the values (N, C) of the points in each pixel, by weight: (1, C, H, W), and the weights' sum."""
    column, row = points.floor().long().unbind(1)
    visible = (column >= 0) & (column < size[1]) & (row >= 0) & (row < size[0])
    index = (row * size[1] + column)[visible]
    total = torch.zeros(size[0] * size[1], values.shape[1]).index_add_(0, index, (values * weight[:, None])[visible])
    count = torch.zeros(size[0] * size[1], 1).index_add_(0, index, weight[visible, None])
    mean = total / count.clamp_min(1e-6)
    return tuple(side.T.unflatten(1, size)[None] for side in (mean, count))
