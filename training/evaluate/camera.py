"""Measures the motion of a video's background, which is the camera's motion.

Nothing is learned here. It finds one velocity for the video: the one for which the frames, moved back by it, match best
outside of the object, by least squares (Lucas and Kanade's method, with pairs of frames increasingly far apart).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.evaluate.objects import in_parts
from vc_core.extract.sketch.methods import blurred

_APART = (1, 1, 1, 1, 2, 2, 4, 4)  # distance of the frames of a pair, per iteration; larger distances reduce noise
_BLUR = 2.5  # pixels: backgrounds are smooth, and finer structure is noise, which makes motion look smaller
_AROUND = 11  # pixels: size of the dilation of the mask, because the blur spreads the object
_FLAT = 0.1  # if a background changes this much less in one direction than in the other, its motion there is invisible


def camera_step(video: Tensor, mask: Tensor) -> Tensor:
    """Return the background's motion (B, 2), x and y in frame widths per frame; zero if no background is visible.

    Args:
        video: (B, 3, F, S, S) in [0, 1].
        mask: (B, F, S, S) bool, the object; may be empty.
    """
    return in_parts(_step, video, mask) / video.shape[-1]


def _step(video: Tensor, mask: Tensor) -> Tensor:
    """Return the same in pixels."""
    frames, outside = _blurred(video), _outside(mask)
    velocity = torch.zeros(len(video), 2)
    for apart in [step for step in _APART if step < video.shape[2]]:
        moved = _moved(torch.cat([frames, outside], 1)[:, :, apart:], apart * velocity)
        # Only pixels count where the background is visible in both frames.
        where = outside[:, :, :-apart] * (moved[:, -1:] > 0.99)
        change = (moved[:, :-1] - frames[:, :, :-apart]) * where
        slope = _gradient(moved[:, :-1]) * where[:, None]  # (B, 2, 3, F, S, S)
        against = torch.einsum("bkn,bn->bk", slope.flatten(2), change.flatten(1))
        velocity = velocity - torch.linalg.solve(_tensor(slope), against[..., None])[..., 0] / apart
    return velocity


def visible_axes(video: Tensor, mask: Tensor) -> Tensor:
    """Return directions (B, 2, 2), unit vectors in rows, in which a background's motion is visible, usually x and y.

    Motion along stripes is invisible: for these the first direction is across them, and the second is NaN.
    """
    where = _outside(mask)
    tensor = _tensor(_gradient(_blurred(video)) * where[:, None])
    strength, vectors = torch.linalg.eigh(tensor)  # ascending
    across = torch.stack([vectors[..., 1], torch.full_like(vectors[..., 0], torch.nan)], dim=1)
    both = (strength[:, 0] >= _FLAT * strength[:, 1])[:, None, None]
    return torch.where(both, torch.eye(2), across)


def _blurred(video: Tensor) -> Tensor:
    frames = blurred(video.transpose(1, 2).flatten(0, 2), _BLUR, round(2.5 * _BLUR))
    return frames.unflatten(0, (len(video), video.shape[2], -1)).transpose(1, 2)


def _outside(mask: Tensor) -> Tensor:
    """Return a mask (B, 1, F, S, S), 1 where the background is visible."""
    return 1 - F.max_pool2d(mask.float(), _AROUND, stride=1, padding=_AROUND // 2)[:, None]


def _moved(video: Tensor, by: Tensor) -> Tensor:
    """Sample videos (B, C, F, S, S) at positions shifted by (B, 2) pixels; zero outside of the frame."""
    side = video.shape[-1]
    at = torch.linspace(-1, 1, 2 * side + 1)[1::2]
    y, x = torch.meshgrid(at, at, indexing="ij")
    grid = torch.stack([x, y], -1)[None] + 2 / side * by[:, None, None]
    return F.grid_sample(video.flatten(1, 2), grid, padding_mode="zeros", align_corners=False).reshape(video.shape)


def _gradient(video: Tensor) -> Tensor:
    """Return the change of a video per pixel to the right and down, (B, 2, C, F, S, S)."""
    dy, dx = torch.gradient(video, dim=(3, 4))
    return torch.stack([dx, dy], dim=1)


def _tensor(slope: Tensor) -> Tensor:
    """Return the structure tensor (B, 2, 2) of gradients (B, 2, ...), slightly enlarged to be invertible."""
    flat = slope.flatten(2)
    tensor = flat @ flat.transpose(1, 2)
    return tensor + (1e-3 * tensor.diagonal(dim1=1, dim2=2).sum(1) + 1e-6)[:, None, None] * torch.eye(2)
