"""Motion fields from tracks of points and boxes, in the format of spline editors."""

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
    # A Gaussian is cut off below a hundredth, at three standard deviations, so that its influence is local.
    "gaussian": lambda squared: torch.exp(-2 * squared).where(squared <= -math.log(0.01) / 2, 0),
    "hard": lambda squared: (squared <= 1).to(squared),
}
"""Influence 0..1 from the squared distance in radii. The radius of a Gaussian is two standard deviations."""

SPACINGS = ("index", "length")
"""How the points of a track are spread over the frames, see `resample_track`."""

_EXPECTED = 'Expected [{"x": 10, "y": 20}, ...] or a list of such lists, the format of spline editors'
_EXPECTED_BOX = (
    'Expected {"box": {"x": 10, "y": 20, "width": 30, "height": 40}, "path": [{"x": 25, "y": 40}, ...]} with finite '
    "numbers, and a width and a height above 0"
)


@dataclass(frozen=True)
class Track:
    """A path on the canvas, and the area that moves along it.

    Attributes:
        points: (N, 2) float64, x and y in pixels of the canvas; one point does not move.
        box: the area that moves along the path as one, at its position when the path begins; None: the surroundings of
            the point.
        visible: (N,) bool, whether each point is visible; None: all are.
    """

    points: Tensor
    box: Rectangle | None = None
    visible: Tensor | None = None

    def scaled(self, right: float, down: float) -> Track:
        """The track on a canvas that is larger by these factors."""
        box = self.box and Rectangle(
            *(side * by for side, by in zip(astuple(self.box), (right, down, right, down), strict=True))
        )
        return replace(self, points=self.points * self.points.new_tensor([right, down]), box=box)


def read_tracks(path: str | os.PathLike) -> list[Track]:
    """Read the tracks of a JSON file, see `parse_tracks`. Raises UserError if it is missing or contains no tracks."""
    path = Path(path)
    try:
        text = read_text(path, "utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as tracks ({reason(error)}). Pass a .json file.") from error
    return parse_tracks(text, str(path))


def parse_tracks(source: str | Sequence[Any] | Mapping[str, Any], name: str = "The tracks") -> list[Track]:
    """Parse the output of track editors to tracks, in pixels of the editor's canvas.

    It is a list of points, a list of tracks, or JSON text of either (or a list of texts, one per track). A point is
    {"x": ..., "y": ...} or [x, y]. A track is a list of points, or {"box": {"x": ..., "y": ..., "width": ...,
    "height": ...}, "path": [points]}: a box in ComfyUI's format that moves like the path, whose first point belongs to
    the position where the box is drawn. Messages begin with `name`.

    Raises UserError for any other format, for no points, and for numbers that are not finite.
    """
    if isinstance(source, str):
        if not source.strip():
            raise UserError(f"{name}: There are no tracks. {_EXPECTED}.")
        try:
            # Some editors write Python's quotes. Tracks contain no text that this could damage.
            source = parse_json(source.replace("'", '"'))
        except ValueError as error:
            raise UserError(f"{name}: The text is not valid JSON ({error}). {_EXPECTED}.") from error
    if _is_box(source):
        source = [source]
    if not _is_list(source) or not len(source):
        raise UserError(f"{name}: There are no tracks. {_EXPECTED}.")
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
            raise UserError(f"{name}: Invalid box {shown(item['box'])}. {_EXPECTED_BOX}.")
        left, top, width, height = sides
        return replace(_track(item.get("path"), name), box=Rectangle(left, top, left + width, top + height))
    if not _is_list(item) or not len(item):
        raise UserError(f"{name}: There are no points. {_EXPECTED}.")
    for number, point in enumerate(item, 1):
        if not _is_point(point):
            raise UserError(f"{name}: Point {number} is {shown(point)}. {_EXPECTED}, with finite numbers.")
    pairs = [(point["x"], point["y"]) if isinstance(point, Mapping) else tuple(point) for point in item]
    return Track(torch.tensor(pairs, dtype=torch.float64))


def _is_list(item: Any) -> bool:
    return isinstance(item, Sequence) and not isinstance(item, (str, bytes))


def _is_box(item: Any) -> bool:
    return isinstance(item, Mapping) and "box" in item


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= 1e9


def _is_like_a_point(item: Any) -> bool:
    """Also true for points with text, too few numbers or NaN, so that the error can name the point."""
    if isinstance(item, Mapping):
        return not _is_box(item) and ("x" in item or "y" in item)
    return _is_list(item) and len(item) > 0 and not any(_is_list(part) or isinstance(part, Mapping) for part in item)


def _is_point(item: Any) -> bool:
    pair = [item.get("x"), item.get("y")] if isinstance(item, Mapping) else item
    return isinstance(pair, (list, tuple)) and len(pair) == 2 and all(map(_is_number, pair))


def native_to_tracks(native: Any, name: str = "The tracks") -> list[Track]:
    """Convert ComfyUI's TRACKS, {"track_path": (F, N, 2), "track_visibility": (F or 1, N or 1) or missing}, to tracks.

    Raises UserError for other shapes, for no tracks, for numbers that are not finite, and if no point is ever visible.
    """
    path = native.get("track_path") if isinstance(native, Mapping) else None
    if not isinstance(path, Tensor) or path.ndim != 3 or path.shape[2] != 2 or not path.numel():
        raise UserError(f"{name}: track_path is {_shape(path)}. Expected a tensor of shape (frames, tracks, 2).")
    if len(wrong := (~torch.isfinite(path)).nonzero()):
        frame, track, _ = wrong[0].tolist()
        raise UserError(
            f"{name}: track_path contains values that are not finite; the first is at frame {frame + 1} of track "
            f"{track + 1}. Expected positions in pixels."
        )
    visible, expected = native.get("track_visibility"), tuple(path.shape[:2])
    if visible is None:
        visible = torch.ones(1, 1)
    fits = isinstance(visible, Tensor) and visible.ndim == 2
    if not fits or any(side not in (count, 1) for side, count in zip(visible.shape, expected, strict=True)):
        raise UserError(f"{name}: track_visibility is {_shape(visible)}. Expected a tensor of shape {expected}.")
    if not visible.any():
        raise UserError(f"{name}: No point is visible in any frame. Expected track_visibility above 0 for some points.")
    both = path.detach().double().cpu().unbind(1), (visible > 0).cpu().expand(expected).unbind(1)
    return [Track(points, visible=each) for points, each in zip(*both, strict=True)]


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
    """Convert tracks to ComfyUI's TRACKS, in pixels of a video of `size`: position and visibility at every frame.

    A box is represented by its centre. The other arguments are those of `tracks_field`.
    """
    placement, paths, visible = place(canvas, size), [], []
    for track in tracks:
        points = resample_track(track.points, frames, spacing, easing)
        if track.box is not None:
            centre = [(track.box.left + track.box.right) / 2, (track.box.top + track.box.bottom) / 2]
            points = points - points[:1] + points.new_tensor(centre)
        paths.append(placement.to_video(points).float())
        visible.append(visible_at(track, frames, spacing, easing))
    return {"track_path": torch.stack(paths, dim=1), "track_visibility": torch.stack(visible, dim=1)}


def resample_track(
    track: Tensor, frames: int, spacing: str = "index", easing: str = "linear", values: Tensor | None = None
) -> Tensor:
    """The position of a track (N, 2) at each frame, (F, 2) float64; the first and last points keep their positions.

    With spacing "index", equal times pass equally many points, as in the nodes of those editors: a track of F points
    is used unchanged. With "length", equal times cover equal distances. Between points the path is straight. A track
    of one point does not move. `values` (N, C), one row per point, are interpolated instead of the points.
    Raises UserError for an unknown spacing or easing.
    """
    chosen("spacing", spacing, SPACINGS)
    positions, values = track.double().numpy(), (track if values is None else values).double().numpy()
    steps = np.hypot(*np.diff(positions, axis=0).T) if spacing == "length" else np.ones(len(positions) - 1)
    distances = np.concatenate([[0.0], np.cumsum(steps)])
    at = eased(frames, easing).numpy() * distances[-1]
    return torch.from_numpy(np.stack([np.interp(at, distances, column) for column in values.T], axis=-1))


def visible_at(track: Track, frames: int, spacing: str, easing: str) -> Tensor:
    """Whether a track is visible at each frame, (F,) bool. Between two points, it is visible if both points are."""
    visible = torch.ones(len(track.points)) if track.visible is None else track.visible
    return resample_track(track.points, frames, spacing, easing, visible[:, None])[:, 0] > 1 - 1e-6


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
    """The motion field (1, 2, F, H, W) of moving points, in pixels of a video of `size` (height, width).

    At frame f, a track moves the surroundings of its point by the point's displacement from frame f - 1, times the
    track's influence there, 0..1. Where several tracks have influence, the field is the mean of their displacements,
    weighted by the influences, times the largest influence. So a track that is passed twice has the effect of one.
    Elsewhere the field is zero. A track of one point keeps its surroundings still although neighbours move. A track
    with a box moves exactly the box's content. A point that is hidden at frame f or f - 1 moves nothing.

    Args:
        tracks: each a `Track`, or its points, (N, 2).
        canvas: (height, width) of the tracks' canvas, by default the video's; see `Placement`.
        radius: radius of the influence, in pixels of the canvas; by default an eighth of its shorter side, or
            unlimited with a mask.
        mask: (1, 1, h, w) or (1, 1, F or 1, h, w) in 0..1 over the canvas, where the tracks have influence. A single
            frame is for the first frame, and each track moves it along; a mask of F frames is used unchanged.
        falloff: one of `FALLOFFS`, within the radius.
        spacing, easing: see `resample_track`.

    Raises:
        UserError: no tracks, a radius that is not above 0, a mask of another shape or length, an unknown word.
    """
    placement = place(canvas, size)
    if not len(tracks):
        raise UserError("Expected at least one track, got none.")
    if radius is None and mask is None:
        radius = min(canvas or size) / 8
    if radius is not None and not (radius > 0 and math.isfinite(radius)):
        raise UserError(f"The radius of influence must be a finite number of pixels above 0, got {radius:g}.")
    chosen("falloff", falloff, tuple(FALLOFFS))
    region = None if mask is None else _fitted_mask(mask, frames, size)
    total, weight, largest = torch.zeros(2, frames, *size), torch.zeros(frames, *size), torch.zeros(frames, *size)
    for track in tracks:  # one at a time: a hundred tracks need no more memory than one
        track = track if isinstance(track, Track) else Track(track)
        path = resample_track(track.points, frames, spacing, easing)
        points = placement.to_video(path)
        influence = torch.ones(1, 1, 1)
        if track.box is not None:
            influence = _boxed(track.box, path, placement)
        elif radius is not None:
            influence = _around(points, radius * placement.scale, falloff, placement)
        if region is not None:
            influence = influence * _carried(region, points)
        if track.visible is not None:
            visible = visible_at(track, frames, spacing, easing)
            influence = influence * (visible & torch.cat([visible[:1], visible[:-1]]))[:, None, None]
        influence = influence.float().expand(frames, *size)
        steps = torch.diff(points, dim=0, prepend=points[:1])  # since the previous frame
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


def _boxed(box: Rectangle, path: Tensor, placement: Placement) -> Tensor:
    """The influence (F, H, W) of a box that moves along a path (F, 2) in pixels of the canvas."""
    pixel = 1 / placement.scale  # a box smaller than a pixel of the video grows to one, so that it does not vanish
    box = replace(box, right=max(box.right, box.left + pixel), bottom=max(box.bottom, box.top + pixel))
    x, y = placement.pixels()
    return torch.stack([box.covers(x - right, y - down) for right, down in (path - path[:1]).tolist()]).float()


def _fitted_mask(mask: Tensor, frames: int, size: tuple[int, int]) -> Tensor:
    """Resize a mask to the video: (1 or F, 1, H, W), float."""
    mask = mask[:, :, None] if mask.ndim == 4 else mask
    if mask.ndim != 5 or mask.shape[:2] != (1, 1) or mask.shape[2] not in (1, frames):
        raise UserError(
            f"The mask of the tracks has shape {tuple(mask.shape)}. Expected (1, 1, {frames} or 1, height, width)."
        )
    mask = mask.float()
    if not (mask >= 0).logical_and(mask <= 1).all():
        raise UserError("The mask of the tracks has values outside 0..1. Expected 1 where they have influence, else 0.")
    return resize_crop(mask, size)[0].transpose(0, 1)


def _carried(region: Tensor, points: Tensor) -> Tensor:
    """Move a mask (1, 1, H, W) along with points (F, 2), starting at the first; a mask of F frames is returned."""
    if len(region) == len(points):
        return region[:, 0]
    height, width = region.shape[-2:]
    x, y = pixel_centers((height, width))
    back = points[:1] - points  # from the position at a frame to the position in the mask
    across, down = (x + back[:, :1]) / width * 2 - 1, (y.T + back[:, 1:]) / height * 2 - 1  # (F, W), (F, H)
    grid = torch.stack(torch.broadcast_tensors(across[:, None, :], down[:, :, None]), dim=-1)  # (F, H, W, 2)
    # The mask continues beyond the frame's edge, so that a background masked up to the edge moves in from outside.
    region = region.expand(len(points), -1, -1, -1)
    return F.grid_sample(region, grid.float(), padding_mode="border", align_corners=False)[:, 0]
