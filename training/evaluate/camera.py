"""How the background of a video moves as a whole, which is to say how the camera does.

Nothing is learned here: one velocity for the whole video is sought with which the frames, moved back by it, look most
alike outside of the object, by least squares (Lucas and Kanade's method, for pairs of frames ever farther apart).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.evaluate.objects import in_parts
from vc_core.extract.sketch.methods import blurred

_APART = (1, 1, 1, 1, 2, 2, 4, 4)  # frames between those of a pair, step by step: the farther, the less noise counts
_BLUR = 2.5  # pixels: grounds are smooth, and what is finer is noise, which makes motion look smaller
_AROUND = 11  # pixels that a mask is grown to before what is outside of it counts, as the blur carries the object there
_FLAT = 0.1  # a direction in which a background changes this much less than in the other one does not tell its motion


def camera_step(video: Tensor, mask: Tensor) -> Tensor:
    """The background's motion (B, 2), x and y in frame widths a frame; zero where there is no background to be seen.

    Args:
        video: (B, 3, F, S, S) in [0, 1].
        mask: (B, F, S, S) bool, the object, which may be nowhere.
    """
    return in_parts(_step, video, mask) / video.shape[-1]


def _step(video: Tensor, mask: Tensor) -> Tensor:
    """The same in pixels."""
    frames, there = _blurred(video), _outside(mask)
    found = torch.zeros(len(video), 2)
    for apart in [step for step in _APART if step < video.shape[2]]:
        moved = _moved(torch.cat([frames, there], 1)[:, :, apart:], apart * found)
        # A place counts where the background is to be seen in both frames.
        where = there[:, :, :-apart] * (moved[:, -1:] > 0.99)
        change = (moved[:, :-1] - frames[:, :, :-apart]) * where
        slope = _gradient(moved[:, :-1]) * where[:, None]  # (B, 2, 3, F, S, S)
        against = torch.einsum("bkn,bn->bk", slope.flatten(2), change.flatten(1))
        found = found - torch.linalg.solve(_tensor(slope), against[..., None])[..., 0] / apart
    return found


def told_directions(video: Tensor, mask: Tensor) -> Tensor:
    """The directions (B, 2, 2), unit vectors in rows, in which a background's motion is to be seen: x and y, as a rule.

    Along stripes nothing tells that they move: of these there is one direction, across them, and NaN for the other.
    """
    where = _outside(mask)
    tensor = _tensor(_gradient(_blurred(video)) * where[:, None])
    strength, vectors = torch.linalg.eigh(tensor)  # ascending
    across = torch.stack([vectors[..., 1], torch.full_like(vectors[..., 0], torch.nan)], dim=1)
    whole = (strength[:, 0] >= _FLAT * strength[:, 1])[:, None, None]
    return torch.where(whole, torch.eye(2), across)


def _blurred(video: Tensor) -> Tensor:
    frames = blurred(video.transpose(1, 2).flatten(0, 2), _BLUR, round(2.5 * _BLUR))
    return frames.unflatten(0, (len(video), video.shape[2], -1)).transpose(1, 2)


def _outside(mask: Tensor) -> Tensor:
    """1 where the background is to be seen, (B, 1, F, S, S)."""
    return 1 - F.max_pool2d(mask.float(), _AROUND, stride=1, padding=_AROUND // 2)[:, None]


def _moved(video: Tensor, by: Tensor) -> Tensor:
    """Videos (B, C, F, S, S) seen at each place moved by (B, 2) pixels, zero outside of the frame."""
    side = video.shape[-1]
    at = torch.linspace(-1, 1, 2 * side + 1)[1::2]
    y, x = torch.meshgrid(at, at, indexing="ij")
    grid = torch.stack([x, y], -1)[None] + 2 / side * by[:, None, None]
    return F.grid_sample(video.flatten(1, 2), grid, padding_mode="zeros", align_corners=False).reshape(video.shape)


def _gradient(video: Tensor) -> Tensor:
    """(B, 2, C, F, S, S): how a video changes to the right and down, a pixel."""
    dy, dx = torch.gradient(video, dim=(3, 4))
    return torch.stack([dx, dy], dim=1)


def _tensor(slope: Tensor) -> Tensor:
    """The structure tensor (B, 2, 2) of gradients (B, 2, ...), a little more than it is, so that it can be inverted."""
    flat = slope.flatten(2)
    tensor = flat @ flat.transpose(1, 2)
    return tensor + (1e-3 * tensor.diagonal(dim1=1, dim2=2).sum(1) + 1e-6)[:, None, None] * torch.eye(2)
