"""Measures of how well videos follow their conditions: pure functions of a video's features and the truth, and a table.

Most functions return one figure for each of B videos, (B,) float32, others pairs of target and measured values, (B,
points, 2); NaN if nothing can be measured, for example if the object was not found. Lengths are in frame widths, so
that different sizes can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.synthetic.captions import direction_class
from training.evaluate.camera import camera_step
from training.evaluate.examples import PACES, Truth, motion_of
from training.evaluate.judge import Judge
from training.evaluate.objects import NOTHING, Objects, at_side, find_objects, in_parts, shapes_of
from training.evaluate.statistics import Statistic, explained, slope
from training.evaluate.tracking import Flow, chained, track_error
from vc_core.extract.sketch.methods import REFERENCE, blurred, edges
from vc_core.video import resize_crop

SLOWEST = 0.5 / 64
"""Slowest target motion that is compared with the measured motion, in frame widths per frame."""


# --- Motion ---------------------------------------------------------------------------------------------------------


def endpoint_error(motion: Tensor, target: Tensor, where: Tensor) -> Tensor:
    """Return the mean distance between the vectors of two fields (B, 2, F, H, W), over `where` (B, F, H, W) bool."""
    return _mean_over((motion - target).norm(dim=1), where)


def motion_control_error(motion: Tensor, target: Tensor) -> Tensor:
    """Return the mean end-point error (B,) in pixels between two fields (B, 2, F, H, W) in frame widths per frame, over
    all pixels of all frames but the first, before which nothing moves."""
    where = torch.ones_like(target[:, 0], dtype=torch.bool)
    where[:, 0] = False
    return endpoint_error(motion, target, where) * target.shape[-1]


def track_errors(video: Tensor, tracks: Tensor, flow: Flow) -> Tensor:
    """Return ObjMC (B,): the mean distance between the target tracks (B, P, F, 2) and those of the same points in the
    videos (B, 3, F, H, W), in frame widths; NaN without targets."""
    pairs = zip(video, tracks, strict=True)
    return torch.stack([track_error(chained(clip, target[:, 0], flow), target) for clip, target in pairs])


def path(mask: Tensor) -> Tensor:
    """Return the displacement of the centre of a mask (B, F, H, W) bool since the first frame, (B, F, 2), x and y in
    frame widths; NaN for frames with an empty mask, and for all frames if the first mask is empty."""
    y, x = ((torch.arange(side) + 0.5) / mask.shape[-1] for side in mask.shape[-2:])
    area = mask.sum((2, 3))
    area = torch.where(area > 0, area, math.nan)
    centers = torch.stack([(mask * x).sum((2, 3)), (mask * y[:, None]).sum((2, 3))], dim=-1) / area[..., None]
    return centers - centers[:, :1]


def path_error(mask: Tensor, truth: Tensor) -> Tensor:
    """Return the mean distance between the measured and the target path of an object, over the frames that show it."""
    return (path(mask) - path(truth))[:, 1:].norm(dim=2).nanmean(1)


def displacement_error(mask: Tensor, truth: Tensor) -> Tensor:
    """Return the distance (B,) between the object's and the true position in the last frame."""
    return (path(mask) - path(truth))[:, -1].norm(dim=1)


def displacement_fraction(mask: Tensor, truth: Tensor, slowest: float = 0.0, fastest: float = math.inf) -> Tensor:
    """Return the fraction of the target displacement that an object moved, in the target direction: 1 is all of it, 0
    none, -1 the opposite.

    NaN if the target mean speed is outside `slowest` to `fastest`, in frame widths per frame, or zero.
    """
    measured, target = path(mask)[:, -1], path(truth)[:, -1]
    length = target.norm(dim=1)
    speed = length / (mask.shape[1] - 1)
    counts = (length > 0) & (speed >= slowest) & (speed < fastest)
    return torch.where(counts, (measured * target).sum(1) / length.square(), math.nan)


def displacement(mask: Tensor) -> Tensor:
    """Return the displacement of an object (B, F, H, W) bool from the first to the last frame that shows it: (B, 2) in
    frame widths, NaN if no frame does."""
    visible = mask.any((2, 3))  # (B, F)
    numbers = torch.arange(mask.shape[1])
    first = torch.where(visible, numbers, mask.shape[1]).amin(1).clamp_max(mask.shape[1] - 1)
    last = torch.where(visible, numbers, 0).amax(1)
    ends = mask[torch.arange(len(mask))[:, None], torch.stack([first, last], 1)]
    return path(ends)[:, 1]


def direction(mask: Tensor) -> Tensor:
    """Return the direction of an object's motion as in captions, (B,), see `direction_class`; NOTHING if not found."""
    step = displacement(mask) / max(mask.shape[1] - 1, 1)
    return torch.where(step.isnan().any(1), NOTHING, direction_class(step.nan_to_num()))


def object_steps(mask: Tensor, truth: Tensor) -> Tensor:
    """Return the mean step per frame of an object as pairs (B, 2, 2): x and y, each target and measured, in frame
    widths."""
    target, measured = (path(video)[:, -1] / max(mask.shape[1] - 1, 1) for video in (truth, mask))
    return _paired(target, target, measured)


def camera_steps(step: Tensor, truth: Truth) -> Tensor:
    """Return target and measured steps (B, 2, 2) of the background, from its step (B, 2), along the axes in which
    motion is visible."""
    target, measured = (torch.einsum("bki,bi->bk", truth.camera_axes, motion) for motion in (truth.camera, step))
    return _paired(truth.camera, target, measured)


def _paired(motion: Tensor, target: Tensor, measured: Tensor) -> Tensor:
    """Return pairs (B, 2, 2) of values (B, 2); NaN if the target `motion` is too slow to be distinguished from none."""
    target = torch.where((motion.norm(dim=1) >= SLOWEST)[:, None], target, math.nan)
    return torch.stack([target, torch.where(target.isnan(), math.nan, measured)], dim=2)


# --- Shapes and places ----------------------------------------------------------------------------------------------


def overlap(mask: Tensor, truth: Tensor) -> Tensor:
    """Return the intersection over union of two masks (B, F, H, W) bool, over all frames."""
    return (mask & truth).sum((1, 2, 3)) / (mask | truth).sum((1, 2, 3)).clamp_min(1)


def outlines(video: Tensor) -> Tensor:
    """Return the edges (B, F, S, S) bool of videos (B, 3, F, H, W), at the size that the edge thresholds are for."""
    return in_parts(lambda part: edges(resize_crop(part, (REFERENCE, REFERENCE)))[:, 0] > 0.5, video)


def outline_overlap(lines: Tensor, truth: Tensor, tolerance: int = 1) -> Tensor:
    """Return the boundary F-measure of two outlines (B, F, H, W) bool: the harmonic mean of the fraction of the lines
    within `tolerance` pixels of a true line, and the fraction of the true lines within that distance of a line."""

    def near(lines: Tensor, others: Tensor) -> Tensor:
        reach = F.max_pool2d(others.float(), 2 * tolerance + 1, stride=1, padding=tolerance) > 0
        return (lines & reach).sum((1, 2, 3)) / lines.sum((1, 2, 3)).clamp_min(1)

    precision, recall = near(lines, truth), near(truth, lines)
    return 2 * precision * recall / (precision + recall).clamp_min(1e-9)


def outline_gradient(video: Tensor, mask: Tensor) -> Tensor:
    """Return the gradient of a video (B, 3, F, S, S) across the outline of its object (B, F, S, S) bool, in RGB per
    pixel.

    It is the mean over the pixels on both sides of the outline, over all frames. It is smaller for blurred outlines.
    Noise changes it little, because its gradient adds to the outline's in squares.
    """

    def gradient(video: Tensor, mask: Tensor) -> Tensor:
        area = mask.float()
        across = torch.stack(torch.gradient(blurred(area.flatten(0, 1), 1.0, 2).view_as(area), dim=(2, 3)), 1)
        across = F.normalize(across, dim=1)  # (B, 2, F, S, S), perpendicular to the outline
        change = torch.stack(torch.gradient(video, dim=(3, 4)), 1)  # (B, 2, 3, F, S, S)
        grown, shrunk = (sign * F.max_pool2d(sign * area, 3, stride=1, padding=1) for sign in (1, -1))
        return _mean_over((change * across[:, :, None]).sum(1).norm(dim=1), grown > shrunk)

    return in_parts(gradient, video, mask)


def equal(index: Tensor, truth: Tensor) -> Tensor:
    """Return 1 where two indices (B,) are equal, otherwise 0; NOTHING counts as wrong."""
    return ((index == truth) & (index != NOTHING)).float()


# --- Pixels and embeddings ------------------------------------------------------------------------------------------


def pixel_error(video: Tensor, truth: Tensor, where: Tensor | None = None) -> Tensor:
    """Return the root mean square error of RGB (B, 3, F, H, W) in [0, 1], over `where` (B, 1, F, H, W) bool."""
    where = torch.ones_like(video[:, :1], dtype=torch.bool) if where is None else where
    return _mean_over((video - truth).square().mean(1), where[:, 0]).sqrt()


_TONES = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1), (1, -1, 0), (1, 0, -1), (0, 1, -1))


def palette_distance(video: Tensor, images: Tensor) -> Tensor:
    """Return the distance between the colours of videos (B, 3, F, H, W) and images (B, 3, S, S), wherever they are.

    It is the mean Wasserstein distance of the colours along some directions of RGB.
    """
    tones = F.normalize(torch.tensor(_TONES, dtype=torch.float32), dim=1)
    levels = torch.linspace(0, 1, 65)[1::2]

    def quantiles(pixels: Tensor) -> Tensor:  # (3, N) -> (7, 32)
        return (tones @ pixels).sort(dim=1).values[:, (levels * pixels.shape[1]).long()]

    frames = video[:, :, :: max(video.shape[2] // 4, 1)].flatten(2)
    pairs = zip(frames, images.flatten(2), strict=True)
    return torch.stack([(quantiles(first) - quantiles(second)).abs().mean() for first, second in pairs])


def nearer_palette(video: Tensor, images: Tensor, others: Tensor) -> Tensor:
    """Return 1 where the colours of a video are closer to its image than to another image, otherwise 0."""
    return (palette_distance(video, images) < palette_distance(video, others)).float()


def neighbour_similarity(frames: Tensor) -> Tensor:
    """Return the mean cosine of the embeddings (B, F, D) of neighbouring frames."""
    return F.cosine_similarity(frames[:, 1:], frames[:, :-1], dim=-1).mean(1)


def similarity(frames: Tensor, reference: Tensor) -> Tensor:
    """Return the mean cosine of the embeddings of frames (B, F, D) and of a text or image, `reference` (B, D)."""
    return F.cosine_similarity(frames, reference[:, None], dim=-1).mean(1)


def _mean_over(values: Tensor, where: Tensor) -> Tensor:
    """Return the mean of values (B, F, H, W) over `where` (B, F, H, W) bool; NaN if it is empty."""
    count = where.sum((1, 2, 3))
    return torch.where(count > 0, (values * where).sum((1, 2, 3)) / count.clamp_min(1), math.nan)


# --- The table ------------------------------------------------------------------------------------------------------


@dataclass
class Features:
    """Features of B videos, each computed on first use."""

    pixels: Tensor  # (B, 3, F, H, W), in [0, 1] or as bytes
    texts: list[str]  # the captions of their clips
    judge: Judge
    flow: Flow | None = None  # for tracks

    @property
    def video(self) -> Tensor:
        """The videos in [0, 1], computed each time, because all videos as floats would need four times the memory."""
        return self.pixels if self.pixels.is_floating_point() else self.pixels.float() / 255

    @cached_property
    def objects(self) -> Objects:
        return find_objects(self.video)

    @cached_property
    def camera(self) -> Tensor:
        """Steps of the background (B, 2), see `camera_step`."""
        return camera_step(at_side(self.video), self.objects.mask)

    @cached_property
    def motion(self) -> Tensor:
        return motion_of(self.video)

    @cached_property
    def outlines(self) -> Tensor:
        return outlines(self.video)

    @cached_property
    def frames(self) -> Tensor:
        """Embeddings (B, F, D)."""
        return self.judge.images(self.video.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(self.pixels), -1))


@dataclass(frozen=True)
class Measure:
    """One row of the table."""

    name: str
    label: str
    trial: str  # a key of `training.evaluate.trials.TRIALS`, whose videos are measured
    better: Literal["high", "low", "source"]  # which figures are better; `source`: closer to those of the source
    of: Callable[[Features, Truth], Tensor]  # computes the figures of some videos, from the truth about their clips
    percent: bool = False  # show figures in percent
    statistic: Statistic = slope  # summarises the figures
    relative: bool = False  # figures are relative to the clip itself, encoded and decoded by the autoencoder
    loses: bool = False  # a missing figure means that the object was not found, and not that the scene does not count
    needs: tuple[Literal["text", "image"], ...] = ()  # required towers
    needs_flow: bool = False  # requires `Features.flow`
    scenes: bool = True  # works only with scenes: it uses their known contents, or conditions that only scenes have


_, _MIDDLE, _FAST = PACES


def _consistency(features: Features, truth: Truth) -> Tensor:
    return neighbour_similarity(features.frames)


def _palette(features: Features, truth: Truth) -> Tensor:
    return nearer_palette(features.video, truth.style, truth.other_style)


def _first_frame(features: Features, truth: Truth) -> Tensor:
    return pixel_error(features.video[:, :, :1], truth.video[:, :, :1])


def _overlap(features: Features, truth: Truth) -> Tensor:
    return overlap(features.objects.mask, truth.mask)


def _sharpness(features: Features, truth: Truth) -> Tensor:
    return outline_gradient(at_side(features.video), features.objects.mask)


def _objects(features: Features, truth: Truth) -> Tensor:
    return object_steps(features.objects.mask, truth.mask)


def _camera(features: Features, truth: Truth) -> Tensor:
    return camera_steps(features.camera, truth)


def _objects_and_camera(features: Features, truth: Truth) -> Tensor:
    return torch.cat([_objects(features, truth), _camera(features, truth)], dim=1)


_RATIO = "measured over target motion, "
_ROWS = (
    Measure("consistency", "similarity of neighbouring frames (CLIP cosine)", "text", "source", _consistency,
            needs=("image",), scenes=False),
    Measure("similarity", "similarity to the text (CLIP cosine)", "text", "high",
            lambda features, truth: similarity(features.frames, features.judge.texts(features.texts)),
            needs=("text", "image"), scenes=False),
    Measure("colour", "object has the colour in the text", "text", "high",
            lambda features, truth: equal(features.objects.color, truth.color), percent=True),
    Measure("shape", "object has the shape in the text", "text", "high",
            lambda features, truth: equal(shapes_of(features.objects.mask), truth.shape), percent=True),
    Measure("direction", "object moves in the direction in the text (of 8)", "text", "high",
            lambda features, truth: equal(direction(features.objects.mask), truth.direction), percent=True),
    Measure("sharpness", "sharpness of the object's outline, relative to the source", "text", "source", _sharpness,
            relative=True, loses=True),
    Measure("style_palette", "colours closer to the style image than to another", "style_alone", "high", _palette,
            percent=True, scenes=False),
    Measure("style_palette_beside_text", "colours closer to the style image than to another", "style", "high", _palette,
            percent=True, scenes=False),
    Measure("style_similarity", "similarity to the style image (CLIP cosine)", "style", "high",
            lambda features, truth: similarity(features.frames, features.judge.images(truth.style)),
            needs=("image",), scenes=False),
    Measure("first_frame", "error of the first frame (RMS of RGB)", "single_image", "low", _first_frame,
            percent=True, scenes=False),
    Measure("single_sketch_overlap", "overlap of the first frame's outlines (boundary F)", "single_sketch", "high",
            lambda features, truth: outline_overlap(features.outlines[:, :1], outlines(truth.video[:, :, :1])),
            percent=True),
    Measure("outline_overlap", "overlap of the outlines (boundary F)", "sketch", "high",
            lambda features, truth: outline_overlap(features.outlines, outlines(truth.video)), percent=True),
    Measure("sketch_overlap", "overlap of the object (IoU)", "sketch", "high", _overlap, percent=True),
    Measure("depth_overlap", "overlap of the object (IoU)", "depth", "high", _overlap, percent=True),
    Measure("mask_overlap", "overlap of the object (IoU)", "mask", "high", _overlap, percent=True),
    Measure("kept", "error in the kept area (RMS of RGB)", "mask", "low",
            lambda features, truth: pixel_error(features.video, truth.video, truth.keep), percent=True),
    Measure("endpoint", "end-point error (widths per frame)", "motion", "low",
            lambda features, truth: endpoint_error(features.motion, truth.motion, truth.motion_mask),
            percent=True, scenes=False),
    Measure("motion_slope", f"{_RATIO}objects and camera: slope", "motion", "source", _objects_and_camera, loses=True),
    Measure("motion_r2", f"{_RATIO}objects and camera: R²", "motion", "high", _objects_and_camera,
            statistic=explained, loses=True),
    Measure("object_slope", f"{_RATIO}objects alone: slope", "motion", "source", _objects, loses=True),
    Measure("object_r2", f"{_RATIO}objects alone: R²", "motion", "high", _objects, statistic=explained, loses=True),
    Measure("camera_slope", f"{_RATIO}camera alone: slope", "motion", "source", _camera, loses=True),
    Measure("camera_r2", f"{_RATIO}camera alone: R²", "motion", "high", _camera, statistic=explained, loses=True),
    Measure("path", "ObjMC: error of the object's path (widths)", "motion", "low",
            lambda features, truth: path_error(features.objects.mask, truth.mask), percent=True, loses=True),
    Measure("displacement", "error of the object's displacement (widths)", "motion", "low",
            lambda features, truth: displacement_error(features.objects.mask, truth.mask), percent=True, loses=True),
    Measure("way", "fraction of the target displacement, all speeds", "motion", "source",
            lambda features, truth: displacement_fraction(features.objects.mask, truth.mask), loses=True),
    Measure("way_slow", "fraction of the displacement, below 1 pixel of 64 per frame", "motion", "source",
            lambda features, truth: displacement_fraction(features.objects.mask, truth.mask, fastest=_MIDDLE)),
    Measure("way_middle", "fraction of the displacement, 1 to 2 pixels per frame", "motion", "source",
            lambda features, truth: displacement_fraction(features.objects.mask, truth.mask, _MIDDLE, _FAST)),
    Measure("way_fast", "fraction of the displacement, above 2 pixels per frame", "motion", "source",
            lambda features, truth: displacement_fraction(features.objects.mask, truth.mask, slowest=_FAST)),
    Measure("motion_consistency", "similarity of neighbouring frames (CLIP cosine)", "motion", "source", _consistency,
            needs=("image",), scenes=False),
    Measure("objmc", "ObjMC: error of tracks by optical flow (widths)", "motion", "low",
            lambda features, truth: track_errors(features.video, truth.tracks, features.flow),
            percent=True, needs_flow=True, scenes=False),
    Measure("motion_control", "motion control error: end-point error of the vectors (pixels)", "motion_with_text",
            "low", lambda features, truth: motion_control_error(features.motion, truth.vectors), scenes=False),
)  # fmt: skip

MEASURES: dict[str, Measure] = {row.name: row for row in _ROWS}
