"""What is to be seen in a video of a synthetic scene: which object, of which colour and shape, and where.

The scenes have a known palette: a background is a blend of two muted colours, an object one pure colour, shaded. So
a video is read by trying all of these and keeping the ones that explain its pixels best. Nothing is learned here, and
nothing is known of the scene that was asked for: what is found can be held against it.
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

SEEN = 64
"""Videos are read at this many pixels a side, whatever their size, so that figures compare."""
NOTHING = -1
"""Index of the colour and shape of an object that was not found."""

_CAP = 0.3  # a pixel that is farther than this from every colour of a palette tells nothing of which one it is
_LEAST = 0.004  # share of the frame that an object covers at least: a disc of radius 2.3 pixels in 64
_FRAMES = 4  # a palette holds for the whole video, so a few frames tell it


class Objects(NamedTuple):
    """The object of each of B videos."""

    mask: Tensor  # (B, F, SEEN, SEEN) bool, where it is; nowhere in videos without one
    color: Tensor  # (B,) index into OBJECT_COLORS, or NOTHING


@cache
def _palettes() -> tuple[Tensor, Tensor, Tensor]:
    """All that scenes have: backgrounds (P, 2, 3), the ends of their blends; objects (K, 2, 3), the darkest and the
    brightest shade; and which of these go together, (P, K) bool."""
    colors, objects = palette(), len(OBJECT_COLORS)
    pairs = [pair for pair in combinations(range(len(colors.muted)), 2) if not colors.alike[pair]]
    first, second = torch.tensor(pairs).unbind(1)
    pale = colors.pale[:objects].T  # (background, object)
    shades = torch.tensor(OBJECT_SHADES)[:, None] * colors.pure[:objects, None]
    grounds = torch.stack([colors.muted[first], colors.muted[second]], 1)
    return grounds, shades, ~(pale[first] | pale[second])


def _distance(pixels: Tensor, ends: Tensor) -> Tensor:
    """Distances (E, N) in RGB of pixels (3, N) to the blends between two colours each, (E, 2, 3)."""
    start, way = ends[:, 0], ends[:, 1] - ends[:, 0]
    # |p - s - t w|^2 with the best t in 0..1, by inner products alone: no (E, N, 3) in memory
    length = way.square().sum(1, keepdim=True)
    along = way @ pixels - (way * start).sum(1, keepdim=True)
    t = (along / length).clamp_(0.0, 1.0)
    far = pixels.square().sum(0) - 2 * start @ pixels + start.square().sum(1, keepdim=True)
    return (far - 2 * t * along + t.square() * length).clamp_min_(0.0).sqrt_()


def find_objects(video: Tensor) -> Objects:
    """The object of each video (B, 3, F, H, W) in [0, 1]."""
    masks, colors = zip(*map(_find, as_seen(video)), strict=True)
    return Objects(torch.stack(masks), torch.tensor(colors))


def as_seen(video: Tensor) -> Tensor:
    """A video at the size at which it is read, (B, 3, F, SEEN, SEEN)."""
    return video if video.shape[-2:] == (SEEN, SEEN) else resize_crop(video, (SEEN, SEEN))


def in_parts(function: Callable[..., Tensor], *videos: Tensor) -> Tensor:
    """Of B videos, eight at a time: what is made of many at once takes gigabytes."""
    return torch.cat([function(*part) for part in zip(*(each.split(8) for each in videos), strict=True)])


def _find(video: Tensor) -> tuple[Tensor, int]:
    """The mask (F, SEEN, SEEN) and colour of the object of one video (3, F, SEEN, SEEN)."""
    (grounds, objects, possible), frames = _palettes(), video.shape[1]
    chosen = torch.linspace(0, frames - 1, min(_FRAMES, frames)).round().long()
    pixels = video[:, chosen].flatten(1)
    to_ground, to_object = (_distance(pixels, ends).clamp_max_(_CAP).square_() for ends in (grounds, objects))
    cost = torch.stack([torch.minimum(to_ground, one).mean(1) for one in to_object], dim=1)  # (P, K)
    ground, color = divmod(int(torch.where(possible, cost, math.inf).argmin()), len(OBJECT_COLORS))
    ends = torch.stack([grounds[ground], objects[color]])
    to_ground, to_object = _distance(video.flatten(1), ends).unflatten(1, video.shape[1:])
    mask = (to_object < to_ground) & (to_object < _CAP)
    if float(mask[chosen].float().mean()) < _LEAST:
        return torch.zeros_like(mask), NOTHING
    return mask, color


# --- Shapes ---------------------------------------------------------------------------------------------------------

_GRID = 40  # pixels a side of masks that are brought to one place and size
_REACH = 1.3  # half of that side, in square roots of the object's area: a star's points reach 1.2


def shapes_of(mask: Tensor) -> Tensor:
    """The shape of the object in each mask (B, F, S, S) bool: an index into SHAPES (B,), or NOTHING.

    The mask of each frame is centred and scaled to unit area, the mean over the frames compared with all shapes as
    scenes draw them; the largest overlap (IoU of soft masks) wins.
    """
    normal, seen = _normalised(mask.flatten(0, 1).float())
    whole = ~(mask[..., [0, -1], :].flatten(-2).any(-1) | mask[..., :, [0, -1]].flatten(-2).any(-1))  # (B, F)
    seen = seen.unflatten(0, mask.shape[:2])
    use = torch.where((whole & seen).any(1, keepdim=True), whole & seen, seen)  # cut ones only where all are cut
    mean = (normal.unflatten(0, mask.shape[:2]) * use[..., None, None]).sum(1) / use.sum(1).clamp_min(1)[:, None, None]
    one, templates = mean[:, None, None], _templates()[None]
    overlap = torch.minimum(one, templates).sum((-2, -1)) / torch.maximum(one, templates).sum((-2, -1))
    return torch.where(use.any(1), overlap.amax(2).argmax(1), NOTHING)


def _normalised(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Masks (N, S, S) of 0 and 1, centred and of unit area (N, _GRID, _GRID); and whether there was any (N,)."""
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
    """Soft masks (shapes, tilts, _GRID, _GRID) as `_normalised` gives them."""
    at = torch.linspace(-1.5, 1.5, 2 * 256 + 1)[1::2]
    y, x = torch.meshgrid(at, at, indexing="ij")
    most = float(sample_scenes(scene_seeds(0, 0, 1024)).tilt.abs().max())
    drawn, tilts = [], torch.linspace(-most, most, 5).tolist()
    for shape in SHAPES:
        for tilt in tilts:
            u, v = x * math.cos(tilt) + y * math.sin(tilt), y * math.cos(tilt) - x * math.sin(tilt)
            drawn.append((unit_distance(shape, u, v) < 0).float())
    return _normalised(torch.stack(drawn))[0].unflatten(0, (len(SHAPES), len(tilts)))
