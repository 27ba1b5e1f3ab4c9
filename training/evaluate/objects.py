"""Finds the object in a video of a synthetic scene: its colour, shape and position.

Scenes have a known palette: a background is a blend of two muted colours, an object has one pure colour with shading.
So all combinations are tried, and the one that explains the pixels best is kept. Nothing is learned here, and nothing
about the requested scene is used, so that the result can be compared with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from itertools import combinations
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.synthetic.render import OBJECT_SHADES, unit_distance
from training.data.synthetic.scenes import OBJECT_COLORS, SHAPES, palette, sample_scenes, scene_seeds
from vc_core.video import resize_crop

SIDE = 64
"""Side in pixels at which videos are analysed, whatever their size, so that figures can be compared."""
NOTHING = -1
"""Index of the colour and shape of an object that was not found."""

_CAP = 0.3  # larger distances to a palette count as this, because such pixels do not help to choose one
_LEAST = 0.004  # minimum fraction of the frame that an object covers: a disc with a radius of 2.3 pixels of 64
_FRAMES = 4  # number of frames for choosing a palette, which is the same in the entire video


class Objects(NamedTuple):
    """The object of each of B videos."""

    mask: Tensor  # (B, F, SIDE, SIDE) bool; empty for videos without an object
    color: Tensor  # (B,) index into OBJECT_COLORS, or NOTHING


@cache
def _palettes() -> tuple[Tensor, Tensor, Tensor]:
    """Return the palettes of scenes: backgrounds (P, 2, 3), the ends of their blends; objects (K, 2, 3), the darkest
    and brightest shade; and which combinations exist, (P, K) bool."""
    colors, objects = palette(), len(OBJECT_COLORS)
    pairs = [pair for pair in combinations(range(len(colors.muted)), 2) if not colors.alike[pair]]
    first, second = torch.tensor(pairs).unbind(1)
    pale = colors.pale[:objects].T  # (background, object)
    shades = torch.tensor(OBJECT_SHADES)[:, None] * colors.pure[:objects, None]
    grounds = torch.stack([colors.muted[first], colors.muted[second]], 1)
    return grounds, shades, ~(pale[first] | pale[second])


def _distance(pixels: Tensor, ends: Tensor) -> Tensor:
    """Return the RGB distances (E, N) of pixels (3, N) to blends between two colours each, (E, 2, 3)."""
    start, span = ends[:, 0], ends[:, 1] - ends[:, 0]
    # |p - s - t w|^2 with the best t in 0..1, only by inner products, without an (E, N, 3) tensor in memory
    length = span.square().sum(1, keepdim=True)
    along = span @ pixels - (span * start).sum(1, keepdim=True)
    t = (along / length).clamp_(0.0, 1.0)
    far = pixels.square().sum(0) - 2 * start @ pixels + start.square().sum(1, keepdim=True)
    return (far - 2 * t * along + t.square() * length).clamp_min_(0.0).sqrt_()


def find_objects(video: Tensor) -> Objects:
    """Find the object in each video (B, 3, F, H, W) in [0, 1]."""
    masks, colors = zip(*map(_find, at_side(video)), strict=True)
    return Objects(torch.stack(masks), torch.tensor(colors))


def at_side(video: Tensor) -> Tensor:
    """Resize a video to the size at which it is analysed, (B, 3, F, SIDE, SIDE)."""
    return video if video.shape[-2:] == (SIDE, SIDE) else resize_crop(video, (SIDE, SIDE))


def in_parts(function: Callable[..., Tensor], *videos: Tensor) -> Tensor:
    """Apply a function to B videos, eight at a time, because more at once would need gigabytes."""
    return torch.cat([function(*part) for part in zip(*(video.split(8) for video in videos), strict=True)])


def _find(video: Tensor) -> tuple[Tensor, int]:
    """Return the mask (F, SIDE, SIDE) and colour of the object in one video (3, F, SIDE, SIDE)."""
    (grounds, objects, possible), frames = _palettes(), video.shape[1]
    chosen = torch.linspace(0, frames - 1, min(_FRAMES, frames)).round().long()
    pixels = video[:, chosen].flatten(1)
    to_ground, to_object = (_distance(pixels, ends).clamp_max_(_CAP).square_() for ends in (grounds, objects))
    cost = torch.stack([torch.minimum(to_ground, distance).mean(1) for distance in to_object], dim=1)  # (P, K)
    ground, color = divmod(int(torch.where(possible, cost, math.inf).argmin()), len(OBJECT_COLORS))
    ends = torch.stack([grounds[ground], objects[color]])
    to_ground, to_object = _distance(video.flatten(1), ends).unflatten(1, video.shape[1:])
    mask = (to_object < to_ground) & (to_object < _CAP)
    if float(mask[chosen].float().mean()) < _LEAST:
        return torch.zeros_like(mask), NOTHING
    return mask, color


# --- Shapes ---------------------------------------------------------------------------------------------------------

_GRID = 40  # side in pixels of centred and scaled masks
_REACH = 1.3  # half of that side, in square roots of the object's area: a star's points extend to 1.2


def shapes_of(mask: Tensor) -> Tensor:
    """Recognize the shape of the object in each mask (B, F, S, S) bool: an index into SHAPES (B,), or NOTHING.

    The mask of each frame is centred and scaled to unit area. The mean over the frames is compared with all shapes of
    scenes, and the shape with the largest overlap (IoU of soft masks) is chosen.
    """
    normal, visible = _normalised(mask.flatten(0, 1).float())
    inside = ~(mask[..., [0, -1], :].flatten(-2).any(-1) | mask[..., :, [0, -1]].flatten(-2).any(-1))  # (B, F)
    visible = visible.unflatten(0, mask.shape[:2])
    complete = inside & visible
    use = torch.where(complete.any(1, keepdim=True), complete, visible)  # cut objects only if all are cut
    mean = (normal.unflatten(0, mask.shape[:2]) * use[..., None, None]).sum(1) / use.sum(1).clamp_min(1)[:, None, None]
    mean, templates = mean[:, None, None], _templates()[None]
    overlap = torch.minimum(mean, templates).sum((-2, -1)) / torch.maximum(mean, templates).sum((-2, -1))
    return torch.where(use.any(1), overlap.amax(2).argmax(1), NOTHING)


def _normalised(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Centre masks (N, S, S) of 0 and 1 and scale them to unit area, (N, _GRID, _GRID); also return which are not
    empty, (N,)."""
    area = mask.sum((1, 2))
    at = torch.linspace(-1, 1, 2 * mask.shape[-1] + 1)[1::2]
    center = torch.stack([(mask * at).sum((1, 2)), (mask * at[:, None]).sum((1, 2))], 1) / area.clamp_min(1)[:, None]
    reach = _REACH * area.clamp_min(1).sqrt() * 2 / mask.shape[-1]
    own = torch.linspace(-1, 1, 2 * _GRID + 1)[1::2]
    y, x = torch.meshgrid(own, own, indexing="ij")
    grid = torch.stack([x, y], -1)[None] * reach[:, None, None, None] + center[:, None, None]
    return F.grid_sample(mask[:, None], grid, align_corners=False)[:, 0], area > 0


@cache
def _templates() -> Tensor:
    """Return soft masks of all shapes, (shapes, tilts, _GRID, _GRID), from `_normalised`."""
    at = torch.linspace(-1.5, 1.5, 2 * 256 + 1)[1::2]
    y, x = torch.meshgrid(at, at, indexing="ij")
    most = float(sample_scenes(scene_seeds(0, 0, 1024)).tilt.abs().max())
    masks, tilts = [], torch.linspace(-most, most, 5).tolist()
    for shape in SHAPES:
        for tilt in tilts:
            u, v = x * math.cos(tilt) + y * math.sin(tilt), y * math.cos(tilt) - x * math.sin(tilt)
            masks.append((unit_distance(shape, u, v) < 0).float())
    return _normalised(torch.stack(masks))[0].unflatten(0, (len(SHAPES), len(tilts)))
