"""How well videos do what they were told to: pure functions of what is seen in them and what is true, and their table.

Every function takes B videos, or what was found in them, and returns one figure each, (B,) float32, or pairs of what
was told and what is seen, (B, points, 2); NaN where there is nothing to be measured, as where the object is lost.
Lengths are in frame widths, so that sizes compare.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.synthetic.captions import direction_class
from training.evaluate.camera import camera_step
from training.evaluate.examples import PACES, Truth
from training.evaluate.judge import Judge
from training.evaluate.objects import NOTHING, Objects, as_seen, find_objects, in_parts, shapes_of
from training.evaluate.statistics import Statistic, explained, slope
from vc_core.extract.motion.from_video import read_motion
from vc_core.extract.sketch.methods import REFERENCE, blurred, edges
from vc_core.video import FramePlan, resize_crop

FINE = 128
"""Pixels a side at which motion is looked for, at least: larger, the autoencoder's flicker is taken for motion too."""
SLOWEST = 0.5 / 64
"""The slowest commands that motion is held against, in frame widths a frame."""


# --- Motion ---------------------------------------------------------------------------------------------------------


def motion_of(video: Tensor) -> Tensor:
    """The motion field (B, 2, F, H, W) of videos (B, 3, F, H, W), in frame widths a frame: our own extractor's.

    Smaller videos are enlarged to `FINE` pixels: the blocks of a codec are large beside their objects. Of a smooth
    background that pans it sees little, as anybody would: along a stripe, nothing tells that it moves.
    """
    size, plan = tuple(video.shape[-2:]), FramePlan(0.0, Fraction(8), video.shape[2])
    options = {"layout": "dense", "mode": "stream", "nominal_height": max(FINE, size[0])}
    return torch.cat([read_motion(one[None], plan, size, **options).field for one in video]) / size[1]


def endpoint_error(motion: Tensor, command: Tensor, where: Tensor) -> Tensor:
    """Mean distance of the vectors of two fields (B, 2, F, H, W) over the places `where` (B, F, H, W) bool."""
    return _mean_over((motion - command).norm(dim=1), where)


def path(mask: Tensor) -> Tensor:
    """How far the centre of a mask (B, F, H, W) bool is from where it began, (B, F, 2) as x, y in frame widths; NaN
    where a frame has none, and everywhere where the first one has none."""
    y, x = ((torch.arange(side) + 0.5) / mask.shape[-1] for side in mask.shape[-2:])
    area = mask.sum((2, 3))
    area = torch.where(area > 0, area, math.nan)
    centers = torch.stack([(mask * x).sum((2, 3)), (mask * y[:, None]).sum((2, 3))], dim=-1) / area[..., None]
    return centers - centers[:, :1]


def path_error(mask: Tensor, truth: Tensor) -> Tensor:
    """Mean distance of an object from where it was to be, seen from where it began, over the frames that have it."""
    return (path(mask) - path(truth))[:, 1:].norm(dim=2).nanmean(1)


def displacement_error(mask: Tensor, truth: Tensor) -> Tensor:
    """The same of the last frame alone."""
    return (path(mask) - path(truth))[:, -1].norm(dim=1)


def displacement_share(mask: Tensor, truth: Tensor, slowest: float = 0.0, fastest: float = math.inf) -> Tensor:
    """The share of the commanded way that an object went, along it: 1 is all of it, 0 none, -1 the opposite way.

    NaN where its mean speed was to be outside `slowest` to `fastest`, in frame widths a frame, or it was not to move.
    """
    went, told = path(mask)[:, -1], path(truth)[:, -1]
    length = told.norm(dim=1)
    speed = length / (mask.shape[1] - 1)
    meant = (length > 0) & (speed >= slowest) & (speed < fastest)
    return torch.where(meant, (went * told).sum(1) / length.square(), math.nan)


def way(mask: Tensor) -> Tensor:
    """How far an object (B, F, H, W) bool went from the first frame that has it to the last one: (B, 2) in frame
    widths, NaN where none has."""
    there = mask.any((2, 3))  # (B, F)
    numbers = torch.arange(mask.shape[1])
    first = torch.where(there, numbers, mask.shape[1]).amin(1).clamp_max(mask.shape[1] - 1)
    last = torch.where(there, numbers, 0).amax(1)
    ends = mask[torch.arange(len(mask))[:, None], torch.stack([first, last], 1)]
    return path(ends)[:, 1]


def direction(mask: Tensor) -> Tensor:
    """Where an object went, as captions say it (B,), see `direction_class`; NOTHING of a lost one."""
    step = way(mask) / max(mask.shape[1] - 1, 1)
    return torch.where(step.isnan().any(1), NOTHING, direction_class(step.nan_to_num()))


def object_steps(mask: Tensor, truth: Tensor) -> Tensor:
    """Mean steps of an object in a clip, as pairs (B, 2, 2): x and y, each as told and as seen, in frame widths."""
    told, seen = (path(one)[:, -1] / max(mask.shape[1] - 1, 1) for one in (truth, mask))
    return _commanded(told, told, seen)


def camera_steps(step: Tensor, truth: Truth) -> Tensor:
    """The same of the background, whose steps (B, 2) are given, in the directions in which they are to be seen."""
    told, seen = (torch.einsum("bki,bi->bk", truth.camera_axes, one) for one in (truth.camera, step))
    return _commanded(truth.camera, told, seen)


def _commanded(motion: Tensor, told: Tensor, seen: Tensor) -> Tensor:
    """Pairs (B, 2, 2) of the motions (B, 2) that are commands: others are too small to be told from none."""
    told = torch.where((motion.norm(dim=1) >= SLOWEST)[:, None], told, math.nan)
    return torch.stack([told, torch.where(told.isnan(), math.nan, seen)], dim=2)


# --- Shapes and places ----------------------------------------------------------------------------------------------


def overlap(mask: Tensor, truth: Tensor) -> Tensor:
    """Intersection over union of two masks (B, F, H, W) bool, over all frames."""
    return (mask & truth).sum((1, 2, 3)) / (mask | truth).sum((1, 2, 3)).clamp_min(1)


def outlines(video: Tensor) -> Tensor:
    """The edges of videos (B, 3, F, H, W), (B, F, S, S) bool, at the size for which the edges' thresholds hold."""
    return in_parts(lambda part: edges(resize_crop(part, (REFERENCE, REFERENCE)))[:, 0] > 0.5, video)


def outline_overlap(lines: Tensor, truth: Tensor, tolerance: int = 1) -> Tensor:
    """The boundary F-measure of two outlines (B, F, H, W) bool: the harmonic mean of the share of the lines that are
    within `tolerance` pixels of a true one, and of the true ones that are as near to one."""

    def near(lines: Tensor, others: Tensor) -> Tensor:
        reach = F.max_pool2d(others.float(), 2 * tolerance + 1, stride=1, padding=tolerance) > 0
        return (lines & reach).sum((1, 2, 3)) / lines.sum((1, 2, 3)).clamp_min(1)

    precision, recall = near(lines, truth), near(truth, lines)
    return 2 * precision * recall / (precision + recall).clamp_min(1e-9)


def outline_gradient(video: Tensor, mask: Tensor) -> Tensor:
    """How much a video (B, 3, F, S, S) changes across the outline of its object (B, F, S, S) bool, in RGB a pixel.

    That is the mean over the pixels on both sides of the outline, of all frames. It falls where outlines blur; noise
    adds to it by squares alone.
    """

    def gradient(video: Tensor, mask: Tensor) -> Tensor:
        there = mask.float()
        across = torch.stack(torch.gradient(blurred(there.flatten(0, 1), 1.0, 2).view_as(there), dim=(2, 3)), 1)
        across = F.normalize(across, dim=1)  # (B, 2, F, S, S), square to the outline
        change = torch.stack(torch.gradient(video, dim=(3, 4)), 1)  # (B, 2, 3, F, S, S)
        grown, shrunk = (sign * F.max_pool2d(sign * there, 3, stride=1, padding=1) for sign in (1, -1))
        return _mean_over((change * across[:, :, None]).sum(1).norm(dim=1), grown > shrunk)

    return in_parts(gradient, video, mask)


def equal(found: Tensor, truth: Tensor) -> Tensor:
    """1 where two indices (B,) are the same, else 0: nothing found is wrong."""
    return ((found == truth) & (found != NOTHING)).float()


# --- Pixels and embeddings ------------------------------------------------------------------------------------------


def pixel_error(video: Tensor, truth: Tensor, where: Tensor | None = None) -> Tensor:
    """Root mean square error of RGB (B, 3, F, H, W) in [0, 1], over the places `where` (B, 1, F, H, W) bool."""
    where = torch.ones_like(video[:, :1], dtype=torch.bool) if where is None else where
    return _mean_over((video - truth).square().mean(1), where[:, 0]).sqrt()


_TONES = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1), (1, -1, 0), (1, 0, -1), (0, 1, -1))


def palette_distance(video: Tensor, images: Tensor) -> Tensor:
    """How far the colours of videos (B, 3, F, H, W) are from those of images (B, 3, S, S), wherever they are.

    The Wasserstein distance of the colours along some directions of RGB, its mean.
    """
    tones = F.normalize(torch.tensor(_TONES, dtype=torch.float32), dim=1)
    share = torch.linspace(0, 1, 65)[1::2]

    def quantiles(pixels: Tensor) -> Tensor:  # (3, N) -> (7, 32)
        return (tones @ pixels).sort(dim=1).values[:, (share * pixels.shape[1]).long()]

    few = video[:, :, :: max(video.shape[2] // 4, 1)].flatten(2)
    pairs = zip(few, images.flatten(2), strict=True)
    return torch.stack([(quantiles(one) - quantiles(other)).abs().mean() for one, other in pairs])


def nearer_palette(video: Tensor, images: Tensor, others: Tensor) -> Tensor:
    """1 where the colours of a video are nearer to those of its image than to those of another one, else 0."""
    return (palette_distance(video, images) < palette_distance(video, others)).float()


def neighbour_similarity(frames: Tensor) -> Tensor:
    """Mean cosine of the embeddings (B, F, D) of neighbouring frames."""
    return F.cosine_similarity(frames[:, 1:], frames[:, :-1], dim=-1).mean(1)


def similarity(frames: Tensor, to: Tensor) -> Tensor:
    """Mean cosine of the embeddings of frames (B, F, D) with one of a text or an image (B, D)."""
    return F.cosine_similarity(frames, to[:, None], dim=-1).mean(1)


def _mean_over(values: Tensor, where: Tensor) -> Tensor:
    """Mean of values (B, F, H, W) over the places `where` (B, F, H, W) bool; NaN where there are none."""
    count = where.sum((1, 2, 3))
    return torch.where(count > 0, (values * where).sum((1, 2, 3)) / count.clamp_min(1), math.nan)


# --- The table ------------------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """What is seen in B videos, found out when it is asked for, and once."""

    pixels: Tensor  # (B, 3, F, H, W), in [0, 1] or as bytes
    texts: list[str]  # the captions of their clips
    judge: Judge

    @property
    def video(self) -> Tensor:
        """In [0, 1]; made anew each time, as all videos as floats would be four times as large."""
        return self.pixels if self.pixels.is_floating_point() else self.pixels.float() / 255

    @cached_property
    def found(self) -> Objects:
        return find_objects(self.video)

    @cached_property
    def camera(self) -> Tensor:
        """Steps of the background (B, 2), see `camera_step`."""
        return camera_step(as_seen(self.video), self.found.mask)

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
    trial: str  # a key of `training.evaluate.trials.TRIALS`, whose videos it looks at
    better: Literal["high", "low", "source"]  # which way is; `source`: the nearer to what the source itself has
    of: Callable[[Seen, Truth], Tensor]  # its figures of some videos, by what is true of their clips
    percent: bool = False  # how figures are told
    statistic: Statistic = slope  # what they are summed up by
    relative: bool = False  # they are told in shares of what the clip itself has, through the autoencoder
    loses: bool = False  # those that are missing are lost objects, which the table tells, not scenes of another pace
    needs: tuple[Literal["text", "image"], ...] = ()  # towers
    scenes: bool = True  # it needs what is known of scenes alone, or the conditions that are made of them alone


_, _MIDDLE, _FAST = PACES


def _consistency(seen: Seen, truth: Truth) -> Tensor:
    return neighbour_similarity(seen.frames)


def _palette(seen: Seen, truth: Truth) -> Tensor:
    return nearer_palette(seen.video, truth.style, truth.other_style)


def _overlap(seen: Seen, truth: Truth) -> Tensor:
    return overlap(seen.found.mask, truth.mask)


def _objects(seen: Seen, truth: Truth) -> Tensor:
    return object_steps(seen.found.mask, truth.mask)


def _camera(seen: Seen, truth: Truth) -> Tensor:
    return camera_steps(seen.camera, truth)


def _both(seen: Seen, truth: Truth) -> Tensor:
    return torch.cat([_objects(seen, truth), _camera(seen, truth)], dim=1)


_LINE = "commanded against seen motion, "
_ROWS = (
    Measure("consistency", "neighbouring frames alike (CLIP cosine)", "text", "source", _consistency,
            needs=("image",), scenes=False),
    Measure("similarity", "like the text (CLIP cosine)", "text", "high",
            lambda seen, truth: similarity(seen.frames, seen.judge.texts(seen.texts)),
            needs=("text", "image"), scenes=False),
    Measure("colour", "object of the colour that the text says", "text", "high",
            lambda seen, truth: equal(seen.found.color, truth.color), percent=True),
    Measure("shape", "object of the shape that the text says", "text", "high",
            lambda seen, truth: equal(shapes_of(seen.found.mask), truth.shape), percent=True),
    Measure("direction", "object goes where the text says (of 8 directions)", "text", "high",
            lambda seen, truth: equal(direction(seen.found.mask), truth.direction), percent=True),
    Measure("sharpness", "gradient along the object's outline, of the source's", "text", "source",
            lambda seen, truth: outline_gradient(as_seen(seen.video), seen.found.mask), relative=True, loses=True),
    Measure("style_palette", "colours nearer to the style image than to another", "style_alone", "high", _palette,
            percent=True, scenes=False),
    Measure("style_palette_beside_text", "colours nearer to the style image than to another", "style", "high", _palette,
            percent=True, scenes=False),
    Measure("style_similarity", "like the style image (CLIP cosine)", "style", "high",
            lambda seen, truth: similarity(seen.frames, seen.judge.images(truth.style)),
            needs=("image",), scenes=False),
    Measure("first_frame", "error of the first frame (RMS of RGB)", "single_image", "low",
            lambda seen, truth: pixel_error(seen.video[:, :, :1], truth.video[:, :, :1]), percent=True, scenes=False),
    Measure("single_sketch_overlap", "overlap of the first frame's outlines (boundary F)", "single_sketch", "high",
            lambda seen, truth: outline_overlap(seen.outlines[:, :1], outlines(truth.video[:, :, :1])), percent=True),
    Measure("outline_overlap", "overlap of the outlines (boundary F)", "sketch", "high",
            lambda seen, truth: outline_overlap(seen.outlines, outlines(truth.video)), percent=True),
    Measure("sketch_overlap", "overlap of the object (IoU)", "sketch", "high", _overlap, percent=True),
    Measure("depth_overlap", "overlap of the object (IoU)", "depth", "high", _overlap, percent=True),
    Measure("mask_overlap", "overlap of the object (IoU)", "mask", "high", _overlap, percent=True),
    Measure("kept", "error of what is kept (RMS of RGB)", "mask", "low",
            lambda seen, truth: pixel_error(seen.video, truth.video, truth.keep), percent=True),
    Measure("endpoint", "end-point error (widths a frame)", "motion", "low",
            lambda seen, truth: endpoint_error(seen.motion, truth.motion, truth.told), percent=True, scenes=False),
    Measure("motion_slope", f"{_LINE}objects and camera: slope", "motion", "source", _both, loses=True),
    Measure("motion_r2", f"{_LINE}objects and camera: R²", "motion", "high", _both, statistic=explained, loses=True),
    Measure("object_slope", f"{_LINE}objects alone: slope", "motion", "source", _objects, loses=True),
    Measure("object_r2", f"{_LINE}objects alone: R²", "motion", "high", _objects, statistic=explained, loses=True),
    Measure("camera_slope", f"{_LINE}camera alone: slope", "motion", "source", _camera, loses=True),
    Measure("camera_r2", f"{_LINE}camera alone: R²", "motion", "high", _camera, statistic=explained, loses=True),
    Measure("path", "error of the object's place, from where it began (widths)", "motion", "low",
            lambda seen, truth: path_error(seen.found.mask, truth.mask), percent=True, loses=True),
    Measure("displacement", "the same at the end of the clip (widths)", "motion", "low",
            lambda seen, truth: displacement_error(seen.found.mask, truth.mask), percent=True, loses=True),
    Measure("way", "share of the commanded way, all speeds", "motion", "source",
            lambda seen, truth: displacement_share(seen.found.mask, truth.mask), loses=True),
    Measure("way_slow", "share of the way, slower than 1 pixel of 64 a frame", "motion", "source",
            lambda seen, truth: displacement_share(seen.found.mask, truth.mask, fastest=_MIDDLE)),
    Measure("way_middle", "share of the way, 1 to 2 pixels a frame", "motion", "source",
            lambda seen, truth: displacement_share(seen.found.mask, truth.mask, _MIDDLE, _FAST)),
    Measure("way_fast", "share of the way, faster than 2 pixels a frame", "motion", "source",
            lambda seen, truth: displacement_share(seen.found.mask, truth.mask, slowest=_FAST)),
    Measure("motion_consistency", "neighbouring frames alike (CLIP cosine)", "motion", "source", _consistency,
            needs=("image",), scenes=False),
)  # fmt: skip

MEASURES: dict[str, Measure] = {row.name: row for row in _ROWS}
