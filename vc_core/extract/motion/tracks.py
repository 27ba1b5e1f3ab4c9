"""Motion fields from tracks, as spline editors write them, of points and of boxes."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import UserError, reason, shown
from ...parsing import parse_json, read_text
from ...video import resize_crop
from ..drawing import Placement, Rectangle, chosen, eased, pixel_centers, place

FALLOFFS = {
    # Below a hundredth, three standard deviations out, a Gaussian is cut off, so that it ends somewhere.
    "gaussian": lambda squared: torch.exp(-2 * squared).where(squared <= -math.log(0.01) / 2, 0),
    "hard": lambda squared: (squared <= 1).to(squared),
}
"""Influence 0..1 from the squared distance in radii. The radius of a Gaussian is two standard deviations."""

SPACINGS = ("index", "length")
"""How a track of another number of points is spread over the frames, see `resample_track`."""

_EXPECTED = 'expected [{"x": 10, "y": 20}, ...] or a list of such lists, as the spline editors write them'
_EXPECTED_BOX = (
    'expected {"box": {"x": 10, "y": 20, "width": 30, "height": 40}, "path": [{"x": 25, "y": 40}, ...]} with finite '
    "numbers, and a width and a height above 0"
)


@dataclass(frozen=True)
class Track:
    """A way over the canvas, and what goes along it.

    Attributes:
        points: (N, 2) float64, x and y in pixels of the canvas; one point is a place that stays.
        box: the area that goes along as a whole, where it is when the way begins; None: what is around the point.
        visible: (N,) bool, where the point is seen; None: everywhere.
    """

    points: Tensor
    box: Rectangle | None = None
    visible: Tensor | None = None

    def scaled(self, right: float, down: float) -> Track:
        """The track on a canvas that is so many times as wide and as high."""
        box = self.box and Rectangle(
            *(side * by for side, by in zip(astuple(self.box), (right, down, right, down), strict=True))
        )
        return replace(self, points=self.points * self.points.new_tensor([right, down]), box=box)


def read_tracks(path: str | os.PathLike) -> list[Track]:
    """The tracks of a JSON file, see `parse_tracks`. Raises UserError where it is missing or holds none."""
    path = Path(path)
    try:
        text = read_text(path, "utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a file of tracks ({reason(error)}): give a .json file.") from error
    return parse_tracks(text, str(path))


def parse_tracks(source: str | Sequence[Any] | Mapping[str, Any], name: str = "The tracks") -> list[Track]:
    """Tracks in pixels of the canvas that they were drawn on, from what editors hand on.

    That is a list of points, a list of tracks, or JSON text of either (or a list of texts, one a track). A point is
    {"x": ..., "y": ...} or [x, y]. A track is a list of points, or {"box": {"x": ..., "y": ..., "width": ...,
    "height": ...}, "path": [points]}: a box, as ComfyUI's own boxes are written, that goes as the path does, whose
    first point stands for the place that the box is drawn at. `name` begins the messages.

    Raises UserError for anything else, for no points, and for numbers that are not finite.
    """
    if isinstance(source, str):
        try:
            # Some editors write Python's quotes. There is no text in tracks that this could spoil.
            source = parse_json(source.replace("'", '"'))
        except ValueError as error:
            raise UserError(f"{name}: this is no JSON ({error}), {_EXPECTED}.") from error
    if _is_box(source):
        source = [source]
    if not _is_list(source) or not len(source):
        raise UserError(f"{name}: there are no tracks in it, {_EXPECTED}.")
    if any(map(_is_like_a_point, source)):
        return [_track(source, name)]
    if all(isinstance(item, str) for item in source):
        texts = [parse_tracks(text, f"{name}, text {number}") for number, text in enumerate(source, 1)]
        return [track for tracks in texts for track in tracks]
    return [_track(track, f"{name}, track {number}") for number, track in enumerate(source, 1)]


def _track(item: Any, name: str) -> Track:
    if _is_box(item):
        sides = item["box"]
        sides = [sides.get(key) for key in ("x", "y", "width", "height")] if isinstance(sides, Mapping) else sides
        if not (_is_list(sides) and len(sides) == 4 and all(map(_is_number, sides)) and min(sides[2:]) > 0):
            raise UserError(f"{name}: its box is {shown(item['box'])}, {_EXPECTED_BOX}.")
        left, top, width, height = sides
        return replace(_track(item.get("path"), name), box=Rectangle(left, top, left + width, top + height))
    if not _is_list(item) or not len(item):
        raise UserError(f"{name}: it has no points, {_EXPECTED}.")
    for number, point in enumerate(item, 1):
        if not _is_point(point):
            raise UserError(f"{name}: point {number} is {shown(point)}, {_EXPECTED} with finite numbers.")
    pairs = [(point["x"], point["y"]) if isinstance(point, Mapping) else tuple(point) for point in item]
    return Track(torch.tensor(pairs, dtype=torch.float64))


def _is_list(item: Any) -> bool:
    return isinstance(item, Sequence) and not isinstance(item, (str, bytes))


def _is_box(item: Any) -> bool:
    return isinstance(item, Mapping) and "box" in item


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= 1e9


def _is_like_a_point(item: Any) -> bool:
    """Also one with texts for numbers, with too few or with NaN, which is to be named as the point that it is."""
    if isinstance(item, Mapping):
        return not _is_box(item) and ("x" in item or "y" in item)
    return _is_list(item) and len(item) > 0 and not any(_is_list(part) or isinstance(part, Mapping) for part in item)


def _is_point(item: Any) -> bool:
    pair = [item.get("x"), item.get("y")] if isinstance(item, Mapping) else item
    return isinstance(pair, (list, tuple)) and len(pair) == 2 and all(map(_is_number, pair))


def native_to_tracks(native: Any, name: str = "The tracks") -> list[Track]:
    """The tracks of a TRACKS of ComfyUI, {"track_path": (F, N, 2), "track_visibility": (F or 1, N or 1) or missing}.

    Raises UserError for other shapes, for none, for numbers that are not finite, and where no point is ever visible.
    """
    path = native.get("track_path") if isinstance(native, Mapping) else None
    if not isinstance(path, Tensor) or path.ndim != 3 or path.shape[2] != 2 or not path.numel():
        raise UserError(f"{name}: track_path is {_shape(path)}, expected a tensor of shape (frames, tracks, 2).")
    if len(wrong := (~torch.isfinite(path)).nonzero()):
        frame, track, _ = wrong[0].tolist()
        raise UserError(
            f"{name}: track_path has values that are no finite numbers, the first one at frame {frame + 1} of track "
            f"{track + 1}: expected places in pixels."
        )
    visible, expected = native.get("track_visibility"), tuple(path.shape[:2])
    if visible is None:
        visible = torch.ones(1, 1)
    fits = isinstance(visible, Tensor) and visible.ndim == 2
    if not fits or any(given not in (count, 1) for given, count in zip(visible.shape, expected, strict=True)):
        raise UserError(f"{name}: track_visibility is {_shape(visible)}, expected a tensor of shape {expected}.")
    if not visible.any():
        raise UserError(f"{name}: no point is visible in any frame: expected track_visibility of some above 0.")
    both = path.detach().double().cpu().unbind(1), (visible > 0).cpu().expand(expected).unbind(1)
    return [Track(points, visible=seen) for points, seen in zip(*both, strict=True)]


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def tracks_to_native(
    tracks: Sequence[Track],
    frames: int,
    size: tuple[int, int],
    canvas: tuple[int, int] | None = None,
    spacing: str = "index",
    easing: str = "linear",
) -> dict[str, Tensor]:
    """Tracks as a TRACKS of ComfyUI, in pixels of a video of `size`: where each is at every frame, and whether seen.

    Of a box it is the centre. The other arguments are those of `tracks_field`.
    """
    placement, paths, seen = place(canvas, size), [], []
    for track in tracks:
        points = resample_track(track.points, frames, spacing, easing)
        if track.box is not None:
            centre = [(track.box.left + track.box.right) / 2, (track.box.top + track.box.bottom) / 2]
            points = points - points[:1] + points.new_tensor(centre)
        paths.append(placement.to_video(points).float())
        seen.append(_visible(track, frames, spacing, easing))
    return {"track_path": torch.stack(paths, dim=1), "track_visibility": torch.stack(seen, dim=1)}


def resample_track(
    track: Tensor, frames: int, spacing: str = "index", easing: str = "linear", values: Tensor | None = None
) -> Tensor:
    """Where a track (N, 2) is at each of the frames, (F, 2) float64; the first and last points keep their places.

    Spacing "index" takes equally many points in equal times, as the nodes around those editors do: a track of F
    points is taken as it is. "length" goes equally far in equal times, wherever the points stand. Between points
    it is straight. A track of one point rests. `values` (N, C) are taken in place of the points that they go with.
    Raises UserError for an unknown spacing or easing.
    """
    chosen("spacing", spacing, SPACINGS)
    places, values = track.double().numpy(), (track if values is None else values).double().numpy()
    steps = np.hypot(*np.diff(places, axis=0).T) if spacing == "length" else np.ones(len(places) - 1)
    way = np.concatenate([[0.0], np.cumsum(steps)])
    at = eased(frames, easing).numpy() * way[-1]
    return torch.from_numpy(np.stack([np.interp(at, way, column) for column in values.T], axis=-1))


def _visible(track: Track, frames: int, spacing: str, easing: str) -> Tensor:
    """Whether a track's point is seen at each of the frames, (F,) bool: between two points where both are."""
    seen = torch.ones(len(track.points)) if track.visible is None else track.visible
    return resample_track(track.points, frames, spacing, easing, seen[:, None])[:, 0] > 1 - 1e-6


def tracks_field(
    tracks: Sequence[Track | Tensor],
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
    A track of one point holds its surroundings still against its neighbours. A track with a box moves what is in the
    box, all of it alike and nothing else. Where a point is not visible, or was not in the frame before, it moves
    nothing.

    Args:
        tracks: each a `Track`, or the points of one, (N, 2).
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
    total, weight, largest = torch.zeros(2, frames, *size), torch.zeros(frames, *size), torch.zeros(frames, *size)
    for track in tracks:  # one at a time: a hundred tracks need no more memory than one
        track = track if isinstance(track, Track) else Track(track)
        way = resample_track(track.points, frames, spacing, easing)
        points = placement.to_video(way)
        influence = torch.ones(1, 1, 1)
        if track.box is not None:
            influence = _boxed(track.box, way, placement)
        elif radius is not None:
            influence = _around(points, radius * placement.scale, falloff, placement)
        if region is not None:
            influence = influence * _carried(region, points)
        if track.visible is not None:
            seen = _visible(track, frames, spacing, easing)
            influence = influence * (seen & torch.cat([seen[:1], seen[:-1]]))[:, None, None]
        influence = influence.float().expand(frames, *size)
        steps = torch.diff(points, dim=0, prepend=points[:1])  # since the frame before
        total.addcmul_(steps.T.float()[:, :, None, None], influence)
        weight += influence
        largest = torch.maximum(largest, influence)
    return (total * (largest / weight.clamp_min(torch.finfo(weight.dtype).tiny)))[None]


def _around(points: Tensor, radius: float, falloff: str, placement: Placement) -> Tensor:
    """The influence (F, H, W) of points (F, 2) in pixels of the video."""
    x, y = pixel_centers(placement.size)
    across = ((x - points[:, :1]) / radius).square().float()  # (F, W)
    down = ((y - points[:, 1]) / radius).square().T.float()  # (F, H)
    return FALLOFFS[falloff](down[:, :, None] + across[:, None, :])


def _boxed(box: Rectangle, way: Tensor, placement: Placement) -> Tensor:
    """The influence (F, H, W) of a box that goes along a way (F, 2) in pixels of the canvas."""
    pixel = 1 / placement.scale  # a box that is smaller than one of the video is that pixel, rather than none
    box = replace(box, right=max(box.right, box.left + pixel), bottom=max(box.bottom, box.top + pixel))
    x, y = placement.pixels()
    return torch.stack([box.covers(x - right, y - down) for right, down in (way - way[:1]).tolist()]).float()


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
    across, down = (x + back[:, :1]) / width * 2 - 1, (y.T + back[:, 1:]) / height * 2 - 1  # (F, W), (F, H)
    grid = torch.stack(torch.broadcast_tensors(across[:, None, :], down[:, :, None]), dim=-1)  # (F, H, W, 2)
    # What the frame's edge cuts goes on beyond it: a ground that is masked up to the edge moves in from there.
    region = region.expand(len(points), -1, -1, -1)
    return F.grid_sample(region, grid.float(), padding_mode="border", align_corners=False)[:, 0]
