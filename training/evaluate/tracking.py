"""Tracks of points in any video, by chaining the optical flow between neighbouring frames (RAFT, arXiv 2003.12039).

Positions are x and y in frame widths, (0, 0) is the upper left corner. Tracks (P, F, 2) are NaN from the frame on in
which their point is not visible.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from vc_core.checkpoint.files import open_tensors
from vc_core.errors import UserError, nearest, reason
from vc_core.extract.motion.tracks import parse_tracks, resample_track, visible_at
from vc_core.parsing import parse_json, read_text

Flow = Callable[[Tensor, Tensor], Tensor]
"""Function of two sets of frames (N, 3, H, W) in [0, 1]: the displacement (N, 2, H, W) in pixels, x and y, of each
pixel of the first frames in the second ones."""

GRID = 12
"""Points per row and column that are tracked in a clip."""
LEAST = 128
"""Minimum side in pixels of frames for RAFT: its coarsest maps have one 128th of that size."""
WEIGHTS = "raft_large_C_T_SKHT_V2-ff5fadd5.pth (download.pytorch.org/models)"
_SIZES = {64: "raft_large", 32: "raft_small"}  # channels of the first layer
_FIRST = "feature_encoder.convnormrelu.0.weight"


def load_raft(weights: Path | None, device: torch.device | str = "cpu") -> Flow | None:
    """Return the flow of torchvision's RAFT with weights from a file; None if `weights` is None.

    Raises:
        UserError: the file is missing or contains other weights.
    """
    if weights is None:
        return None
    from torchvision.models import optical_flow

    if not weights.is_file():
        raise UserError(f"{weights} does not exist. Pass {WEIGHTS}.")
    tensors = open_tensors(weights)
    get = tensors.get()
    name = _SIZES.get(tensors.shapes.get(_FIRST, (0,))[0])
    try:
        if name is None:
            raise RuntimeError
        model = getattr(optical_flow, name)(weights=None)
        model.load_state_dict({key: get(key) for key in tensors.shapes})
    except RuntimeError as error:
        raise UserError(f"{weights} is not a RAFT of torchvision. Pass {WEIGHTS}.") from error
    model = model.eval().to(device)

    @torch.no_grad()
    def flow(first: Tensor, second: Tensor) -> Tensor:
        size = first.shape[-2:]
        scale = max(1.0, LEAST / min(size))
        inner = [math.ceil(side * scale / 8) * 8 for side in size]
        frames = [_resized(frame.to(device) * 2 - 1, inner) for frame in (first, second)]
        field = model(*frames)[-1].cpu()
        ratio = torch.tensor([size[1] / inner[1], size[0] / inner[0]])[:, None, None]
        return _resized(field, size) * ratio

    return flow


def _resized(images: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(images, tuple(size), mode="bilinear", align_corners=False, antialias=True)


def chained(video: Tensor, starts: Tensor, flow: Flow) -> Tensor:
    """Return the tracks (P, F, 2) of points at `starts` (P, 2) in the first frame of a video (3, F, H, W)."""
    field = flow(video[:, :-1].transpose(0, 1), video[:, 1:].transpose(0, 1)) / video.shape[-1]
    positions = [starts]
    for step in field:
        positions.append(positions[-1] + _at(step, positions[-1]))
    return torch.stack(positions, dim=1)


def clip_tracks(video: Tensor, flow: Flow, slowest: float) -> Tensor:
    """Return the tracks (P, F, 2) of a grid of points in a clip (3, F, H, W). A track ends when it leaves the frame or
    when the flow back does not lead to its last position, usually because something covers the point. Tracks slower
    than `slowest` frame widths per frame are NaN, because they do not show whether motion is followed."""
    height, width = video.shape[-2:]
    y, x = torch.meshgrid(*((torch.arange(GRID) + 0.5) / GRID for _ in "yx"), indexing="ij")
    tracks = chained(video, torch.stack([x.flatten(), y.flatten() * height / width], 1), flow)
    back = flow(video[:, 1:].transpose(0, 1), video[:, :-1].transpose(0, 1)) / width
    steps = tracks[:, 1:] - tracks[:, :-1]
    returned = torch.stack([_at(field, tracks[:, number + 1]) for number, field in enumerate(back)], dim=1)
    # The usual limits for a consistent flow, in pixels (arXiv 1711.07837, section 3.2).
    gap, length = (
        (vectors * width).square().sum(-1) for vectors in (steps + returned, torch.cat([steps, returned], -1))
    )
    inside = (tracks >= 0).all(-1) & (tracks <= torch.tensor([1.0, height / width])).all(-1)
    visible = inside.clone()
    visible[:, 1:] &= gap <= 0.01 * length + 0.5
    visible = visible.int().cumprod(1).bool()
    counts = visible[:, 1:]
    speed = (steps.norm(dim=-1) * counts).sum(1) / counts.sum(1).clamp_min(1)
    return torch.where((visible & (speed >= slowest)[:, None])[..., None], tracks, math.nan)


def track_error(tracks: Tensor, targets: Tensor) -> Tensor:
    """Return the mean distance between tracks (P, F, 2) and their targets after the first frame; NaN if there are no
    targets."""
    return (tracks - targets)[:, 1:].norm(dim=-1).nanmean()


def _at(field: Tensor, positions: Tensor) -> Tensor:
    """Return the vectors of a field (2, H, W) at positions (P, 2), (P, 2); outside of the frame those of its border."""
    height, width = field.shape[-2:]
    grid = 2 * positions * torch.tensor([1.0, width / height]) - 1
    values = F.grid_sample(field[None], grid[None, None], padding_mode="border", align_corners=False)
    return values[0, :, 0].T


# --- A file of tracks -----------------------------------------------------------------------------------------------


def read_tracks_file(path: Path | None) -> dict[str, list]:
    """Read a JSON file of tracks by clip: `{"swan.mp4": [[{"x": 10, "y": 20}, ...], ...], ...}`. Each track is in the
    format of spline editors, in pixels of the composed video.

    Raises:
        UserError: the file is missing or has another format.
    """
    if path is None:
        return {}
    try:
        content = parse_json(read_text(path, "utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({reason(error)}). Pass a file of tracks.") from error
    if not isinstance(content, dict) or not content:
        raise UserError(f'{path} contains no tracks by clip. Expected {{"swan.mp4": [[{{"x": 10, "y": 20}}, ...]]}}.')
    return {str(name): parse_tracks(tracks, f"{path}, {name}") for name, tracks in content.items()}


def tracks_from(path: Path, tracks: dict[str, list], names: Sequence[str], frames: int, width: int) -> Tensor:
    """Return the tracks (N, P, F, 2) of a file for clips with these names. Clips without tracks are NaN.

    Raises:
        UserError: the file has tracks of a clip that does not exist.
    """
    if unknown := [name for name in tracks if name not in names]:
        raise UserError(f"{path} has tracks of {unknown[0]}, which is not a clip.{nearest(unknown[0], names)}")
    result = torch.full((len(names), max(map(len, tracks.values())), frames, 2), math.nan)
    for row, name in enumerate(names):
        for number, track in enumerate(tracks.get(name, ())):
            positions = resample_track(track.points, frames).float() / width
            visible = visible_at(track, frames, "index", "linear").int().cumprod(0).bool()
            result[row, number] = torch.where(visible[:, None], positions, math.nan)
    return result
