"""Motion fields from tracks, as spline editors write them, and from a box that moves along an arrow."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from ..video import resize_crop
from .drawing import Placement, Rectangle, chosen, draw_shapes, eased, pixel_centers, place

FALLOFFS = {
    # Below a hundredth, three standard deviations out, a Gaussian is cut off, so that it ends somewhere.
    "gaussian": lambda squared: torch.exp(-2 * squared).where(squared <= -math.log(0.01) / 2, 0),
    "hard": lambda squared: (squared <= 1).to(squared),
}
"""Influence 0..1 from the squared distance in radii. The radius of a Gaussian is two standard deviations."""

SPACINGS = ("index", "length")
"""How a track of another number of points is spread over the frames, see `resample_track`."""

_EXPECTED = 'expected [{"x": 10, "y": 20}, ...] or a list of such lists, as the spline editors write them'


# ---------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------


def read_tracks(path: str | os.PathLike) -> list[Tensor]:
    """The tracks of a JSON file, see `parse_tracks`. Raises UserError where it is missing or holds none."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a file of tracks ({error}): give a .json file.") from error
    return parse_tracks(text, str(path))


def parse_tracks(source: str | Sequence[Any], name: str = "The tracks") -> list[Tensor]:
    """Tracks, each (N, 2) float64 as x, y in pixels of the canvas that they were drawn on, from what editors hand on.

    That is a list of points, a list of such lists, or JSON text of either (or a list of texts, one a track). A point
    is {"x": ..., "y": ...} or [x, y]. `name` begins the messages.

    Raises UserError for anything else, for no points, and for numbers that are not finite.
    """
    if isinstance(source, str):
        try:
            # Some editors write Python's quotes. There is no text in tracks that this could spoil.
            source = json.loads(source.replace("'", '"'))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{name}: this is no JSON ({error}), {_EXPECTED}.") from error
    if not isinstance(source, Sequence) or isinstance(source, (str, bytes)) or not len(source):
        raise UserError(f"{name}: there are no tracks in it, {_EXPECTED}.")
    if _is_point(source[0]):
        return [_track(source, name)]
    if all(isinstance(item, str) for item in source):
        texts = [parse_tracks(text, f"{name}, text {number}") for number, text in enumerate(source, 1)]
        return [track for tracks in texts for track in tracks]
    return [_track(track, f"{name}, track {number}") for number, track in enumerate(source, 1)]


def _track(points: Any, name: str) -> Tensor:
    if not isinstance(points, Sequence) or isinstance(points, (str, bytes)) or not len(points):
        raise UserError(f"{name}: it has no points, {_EXPECTED}.")
    for number, point in enumerate(points, 1):
        if not _is_point(point):
            shown = repr(point)
            shown = shown if len(shown) <= 40 else shown[:40] + "..."
            raise UserError(f"{name}: point {number} is {shown}, {_EXPECTED} with finite numbers.")
    pairs = [(point["x"], point["y"]) if isinstance(point, dict) else tuple(point) for point in points]
    return torch.tensor(pairs, dtype=torch.float64)


def _is_point(item: Any) -> bool:
    pair = [item.get("x"), item.get("y")] if isinstance(item, dict) else item
    return (
        isinstance(pair, (list, tuple))
        and len(pair) == 2
        and all(isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) <= 1e9 for v in pair)
    )


def resample_track(track: Tensor, frames: int, spacing: str = "index", easing: str = "linear") -> Tensor:
    """Where a track (N, 2) is at each of the frames, (F, 2) float64; the first and last points keep their places.

    Spacing "index" takes equally many points in equal times, as the nodes around those editors do: a track of F
    points is taken as it is. "length" goes equally far in equal times, wherever the points stand. Between points
    it is straight. A track of one point rests. Raises UserError for an unknown spacing or easing.
    """
    chosen("spacing", spacing, SPACINGS)
    points = track.double().numpy()
    steps = np.hypot(*np.diff(points, axis=0).T) if spacing == "length" else np.ones(len(points) - 1)
    way = np.concatenate([[0.0], np.cumsum(steps)])
    at = eased(frames, easing).numpy() * way[-1]
    return torch.from_numpy(np.stack([np.interp(at, way, values) for values in points.T], axis=-1))


# ---------------------------------------------------------------------------------------------------------------
# Fields
# ---------------------------------------------------------------------------------------------------------------


def tracks_field(
    tracks: Sequence[Tensor],
    frames: int,
    size: tuple[int, int],
    canvas: tuple[int, int] | None = None,
    radius: float | None = None,
    mask: Tensor | None = None,
    falloff: str = "gaussian",
    spacing: str = "index",
    easing: str = "linear",
) -> Tensor:
    """The motion field (1, 2, F, H, W) of points that move, in pixels of a video of `size` (height, width).

    A track's influence, 0..1, goes with its point: the field near the point's place at frame f is the way from its
    place at frame f - 1, times the influence. Where several tracks reach, it is their mean, weighted by the
    influences, times the largest of them; so a track given twice is as that track. Where none reaches, it is zero.
    A track of one point holds its surroundings still against its neighbours.

    Args:
        tracks: each (N, 2), x and y in pixels of the canvas, see `parse_tracks`.
        canvas: (height, width) that the tracks were drawn on, by default the video's; see `Placement`.
        radius: of the influence, in pixels of the canvas; by default an eighth of its shorter side, or, with a mask,
            no limit.
        mask: (1, 1, h, w) or (1, 1, F or 1, h, w) in 0..1 over the canvas, where the tracks have influence. One
            frame of it shows the first frame, and each track carries it along; a mask of F frames is taken as it is.
        falloff: one of `FALLOFFS`, within the radius.
        spacing, easing: see `resample_track`.

    Raises:
        UserError: no tracks, a radius that is not above 0, a mask of another shape or length, an unknown word.
    """
    placement = place(canvas, size)
    if not len(tracks):
        raise UserError("No track was given to make motion of: expected at least one.")
    if radius is None and mask is None:
        radius = min(canvas or size) / 8
    if radius is not None and not (radius > 0 and math.isfinite(radius)):
        raise UserError(f"The radius of influence is {radius:g}: expected a finite number of pixels above 0.")
    chosen("falloff", falloff, tuple(FALLOFFS))
    region = None if mask is None else _fitted_mask(mask, frames, size)

    def moving():
        for track in tracks:
            points = placement.to_video(resample_track(track, frames, spacing, easing))
            influence = torch.ones(1, 1, 1)
            if radius is not None:
                influence = _around(points, radius * placement.scale, falloff, placement)
            if region is not None:
                influence = influence * _carried(region, points)
            yield _steps(points), influence

    return _blend(moving(), frames, size)


def box_field(
    box: Rectangle,
    frames: int,
    size: tuple[int, int],
    canvas: tuple[int, int] | None = None,
    easing: str = "linear",
) -> Tensor:
    """The motion field (1, 2, F, H, W) of a box whose content moves along an arrow, the box's `travel`, and it too.

    size: (height, width) of the video, whose pixels the field is in; canvas: (height, width) that the box was drawn
    on, by default the same. Around the box the field is zero. `draw_shapes` gives the box itself at every frame.
    Raises UserError for an unknown easing.
    """
    arrow = eased(frames, easing)[:, None] * torch.tensor(box.travel, dtype=torch.float64)
    steps = _steps(arrow * place(canvas, size).scale)
    return _blend([(steps, draw_shapes([box], frames, size, canvas, easing)[0, 0])], frames, size)


def _blend(moving: Iterable[tuple[Tensor, Tensor]], frames: int, size: tuple[int, int]) -> Tensor:
    """The field of what moves by steps (F, 2) with an influence (F, H, W): their mean times the largest influence."""
    total, weight, largest = torch.zeros(2, frames, *size), torch.zeros(frames, *size), torch.zeros(frames, *size)
    for steps, influence in moving:  # one at a time: a hundred tracks need no more memory than one
        influence = influence.float().expand(frames, *size)
        total.addcmul_(steps.T.float()[:, :, None, None], influence)
        weight += influence
        largest = torch.maximum(largest, influence)
    return (total * (largest / weight.clamp_min(torch.finfo(weight.dtype).tiny)))[None]


def _steps(points: Tensor) -> Tensor:
    """How far points (F, 2) moved since the frame before: (F, 2), the first one zero."""
    return torch.diff(points, dim=0, prepend=points[:1])


def _around(points: Tensor, radius: float, falloff: str, placement: Placement) -> Tensor:
    """The influence (F, H, W) of points (F, 2) in pixels of the video."""
    x, y = pixel_centers(placement.size)
    across = ((x - points[:, :1]) / radius).square().float()  # (F, W)
    down = ((y - points[:, 1]) / radius).square().T.float()  # (F, H)
    return FALLOFFS[falloff](down[:, :, None] + across[:, None, :])


def _fitted_mask(mask: Tensor, frames: int, size: tuple[int, int]) -> Tensor:
    """A mask as (1 or F, 1, H, W) float of the video's size."""
    mask = mask[:, :, None] if mask.ndim == 4 else mask
    if mask.ndim != 5 or mask.shape[:2] != (1, 1) or mask.shape[2] not in (1, frames):
        raise UserError(
            f"The mask of the tracks has the shape {tuple(mask.shape)}: expected (1, 1, {frames} or 1, height, width)."
        )
    mask = mask.float()
    if not (mask >= 0).logical_and(mask <= 1).all():
        raise UserError("The mask of the tracks has values outside 0..1: expected 1 where they have influence, else 0.")
    return resize_crop(mask, size)[0].transpose(0, 1)


def _carried(region: Tensor, points: Tensor) -> Tensor:
    """A mask (1, 1, H, W) moved along with points (F, 2) from where they are at first; one of F frames as it is."""
    if len(region) == len(points):
        return region[:, 0]
    height, width = region.shape[-2:]
    x, y = pixel_centers((height, width))
    back = points[:1] - points  # from the place at a frame to the place in the mask
    grid = torch.stack(
        torch.broadcast_tensors(
            (x + back[:, :1])[:, None, :] / width * 2 - 1,
            (y.T + back[:, 1:])[:, :, None] / height * 2 - 1,
        ),
        dim=-1,
    )  # (F, H, W, 2)
    # What the frame's edge cuts goes on beyond it: a ground that is masked up to the edge moves in from there.
    region = region.expand(len(points), -1, -1, -1)
    return F.grid_sample(region, grid.float(), padding_mode="border", align_corners=False)[:, 0]
