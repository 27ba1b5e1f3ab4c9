"""Clips for evaluation: scenes that no training has used, with their conditions and known contents.

Conditions are extracted as users do it: from the scene's frames, with the extractors in the checkpoint's config. Only
depth is the scene's own, without a depth network. Motion is extracted from a video file that is written for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.synthetic.captions import captions, motion_class
from training.data.synthetic.render import render, unit_distance
from training.data.synthetic.scenes import CLIP_FRAMES, OBJECT_COLORS, SHAPES, Scenes, sample_scenes, scene_seeds
from training.evaluate.camera import visible_axes
from training.evaluate.objects import SIDE, at_side
from vc_core.conditions import condition_size, drawing_size
from vc_core.config import Config
from vc_core.errors import UserError
from vc_core.extract import Options, Source, extract
from vc_core.extract.mask import masked_video
from vc_core.extract.motion.from_video import read_motion
from vc_core.extract.motion.reencode import NOMINAL
from vc_core.extract.refit import refit
from vc_core.extract.sources import extract_condition
from vc_core.progress import Progress, reported
from vc_core.video import FramePlan, write_video

HELD_OUT = 2**32
"""Seed of the evaluation scenes: recipes have seeds below 2**31, and the other parts have small ones."""
POOL = 2**16
"""Number of candidate scenes."""
PACES = (3 / 64 / 15, 1 / 64, 2 / 64)
"""Lower limits of slow, middle and fast: the object's mean speed in frame widths per frame. Slower objects, which move
less than 3 of 64 pixels, are left out, because they do not show whether motion is followed."""
FILMED = 256
"""Side in pixels at which scenes are rendered for the motion extractor: larger, and with the grain that codecs need."""

FINE = 128
"""Minimum side in pixels for measuring motion. At larger sizes, flicker of the autoencoder would count as motion."""


@dataclass(frozen=True)
class Truth:
    """Known contents of N clips. The fields from the mask on are known only for scenes, which have one object each.

    Motion is in frame widths per frame, x and y: exact for scenes, otherwise as the measures find it in the clip.
    """

    video: Tensor  # (N, 3, F, H, W) in [0, 1], at the size to compose
    motion: Tensor  # (N, 2, F, H, W)
    motion_mask: Tensor  # (N, F, H, W) bool, where that motion counts
    style: Tensor  # (N, 3, S, S), the style images
    vectors: Tensor | None = None  # (N, 2, F, H, W) motion of the clip as the measures find it, in frame widths
    tracks: Tensor | None = None  # (N, P, F, 2) target tracks, see `training.evaluate.tracking`
    other_style: Tensor | None = None  # the same, of the clips whose conditions are used when shuffled
    mask: Tensor | None = None  # (N, F, SIDE, SIDE) bool, where the object is visible
    color: Tensor | None = None  # (N,) index into OBJECT_COLORS
    shape: Tensor | None = None  # (N,) index into SHAPES
    direction: Tensor | None = None  # (N,) the caption's direction, see `direction_class`
    camera: Tensor | None = None  # (N, 2) motion of the background
    camera_axes: Tensor | None = None  # (N, 2, 2) directions in which it is visible, see `visible_axes`
    keep: Tensor | None = None  # (N, 1, F, H, W) bool, what the mask condition keeps

    def of(self, rows: Tensor) -> Truth:
        """Select clips by index, possibly several times."""
        return Truth(*(None if value is None else value[rows] for value in vars(self).values()))


@dataclass(frozen=True)
class Examples:
    """N clips to compose from and to measure against."""

    keys: list[str]  # unique names of the clips
    texts: list[str]  # one caption each; for scenes about the object, its motion and the background
    conditions: dict[str, Tensor]  # (N, C, F or 1, H, W)
    truth: Truth
    sketch_method: str | None = None  # method that drew the sketches, if there are any
    skipped: list[str] = field(default_factory=list)  # unreadable clips, each with the reason
    sources: list[dict[str, Any]] = field(default_factory=list)  # file, hash and frames of each, see `clip_list`

    def __len__(self) -> int:
        return len(self.texts)


def joined(parts: Sequence[Examples], skipped: Sequence[str] = ()) -> Examples:
    """Concatenate clips with the same conditions; `skipped` lists those that could not be read."""
    truths = zip(*(vars(part.truth).values() for part in parts), strict=True)
    truth = Truth(*(None if values[0] is None else torch.cat(values) for values in truths))
    return Examples(
        [key for part in parts for key in part.keys],
        [text for part in parts for text in part.texts],
        {name: torch.cat([part.conditions[name] for part in parts]) for name in parts[0].conditions},
        replace(truth, other_style=truth.style.roll(-1, 0)),
        parts[0].sketch_method,
        list(skipped),
        [source for part in parts for source in part.sources],
    )


# --- Scenes ---------------------------------------------------------------------------------------------------------


def held_out_scenes(count: int) -> Scenes:
    """Return scenes of the seed `HELD_OUT` with one object, because with two the measures could not distinguish them.
    The object is completely inside the first frame, because a cut shape could not be recognized, and at least half of
    it stays inside later.

    Shapes, colours and paces take turns, so that even a few scenes have all of them and neighbours differ. The first
    scenes do not depend on `count`.

    Raises:
        UserError: `count` is more than there are.
    """
    scenes, kinds = _pool()
    turns = math.lcm(len(SHAPES), len(OBJECT_COLORS), len(SHAPES) * len(PACES))
    chosen = []
    for number in range(count):
        # The pace shifts with each round of the shapes; otherwise each shape would always have the same pace.
        pace = (number + number // len(SHAPES)) % len(PACES)
        kind = torch.tensor([number % len(SHAPES), number % len(OBJECT_COLORS), pace])
        matches = (kinds == kind).all(1).nonzero(as_tuple=True)[0]
        if number // turns >= len(matches):
            raise UserError(f"--clips is {count}, but there are only {number} held-out scenes. Use at most {number}.")
        chosen.append(int(matches[number // turns]))
    return scenes[chosen]


@cache
def _pool() -> tuple[Scenes, Tensor]:
    """Return the candidate scenes, and the shape, colour and pace of each (N, 3)."""
    scenes = sample_scenes(scene_seeds(HELD_OUT, 0, POOL))
    pace = torch.bucketize(scenes.displacement()[:, 0].norm(dim=1) / (CLIP_FRAMES - 1), torch.tensor(PACES)) - 1
    centers = scenes.centers(torch.arange(CLIP_FRAMES))[:, 0]  # (N, F, 2)
    reach = torch.tensor([_reach_of(shape) for shape in SHAPES])[scenes.shape[:, 0]] * scenes.radius[:, 0]
    far = (centers - 0.5).abs().amax(2)  # (N, F)
    visible = (far[:, 0] + reach <= 0.5) & (far.amax(1) + reach / 2 <= 0.5)
    (rows,) = ((scenes.count == 1) & visible & (pace >= 0)).nonzero(as_tuple=True)
    return scenes[rows], torch.stack([scenes.shape[:, 0], scenes.color[:, 0], pace], 1)[rows]


def _reach_of(shape: str) -> float:
    """Return the largest distance of a shape of radius 1 from its centre."""
    at = torch.linspace(-2, 2, 401)
    y, x = torch.meshgrid(at, at, indexing="ij")
    return float(torch.hypot(x, y)[unit_distance(shape, x, y) <= 0.02].max())


def held_out_clips(count: int, config: Config, progress: Progress | None = None) -> Examples:
    """Return the scenes that a checkpoint of this config is evaluated on.

    Scenes are square and have CLIP_FRAMES frames. So the clips are square, with the config's shorter side, and have at
    most that many frames.
    """
    scenes, frames = held_out_scenes(count), min(config.frames, CLIP_FRAMES)
    numbers = reported("scenes", range(count), progress)
    return joined([_clip(f"scene {number + 1}", scenes[number], config, frames) for number in numbers])


def clip_size(config: Config) -> tuple[int, int]:
    """Return (height, width) of the scenes' videos for a checkpoint of this config."""
    side = min(config.height, config.width) // 8 * 8
    return side, side


def after_first(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a mask (B, F, H, W) bool to `size`, and clear the first frame, because nothing moves before it."""
    resized = F.interpolate(mask.float(), size, mode="nearest") > 0.5
    resized[:, 0] = False
    return resized


def _clip(key: str, scene: Scenes, config: Config, frames: int) -> Examples:
    size, extraction = clip_size(config), config.extraction
    large_size = drawing_size("depth", size)
    small = render(scene, size[0], frames, what=("video", "motion"))
    large = render(scene, large_size[0], frames, what=("video", "depth", "object_mask"))
    filmed = render(scene, FILMED, frames, what=("video",)).video
    mask = render(scene, SIDE, frames, what=("object_mask",)).object_mask[:, 0] > 0.5

    sketch = extract_condition("sketch", Source(large.video, None, size, extraction))
    grow = 2 * int(1 + large_size[0] / 32) + 1  # in the middle of the range used in training
    keep = 1 - F.max_pool3d(large.object_mask, (1, grow, grow), stride=1, padding=(0, grow // 2, grow // 2))
    tensors = {
        "motion": motion_of_file(filmed, config),
        "depth": large.depth,
        "sketch": sketch.tensor,
        "mask": masked_video(large.video, keep, condition_size("mask", size, extraction.condition_scale)),
        "single_image": large.video[:, :, :1],
        "single_sketch": sketch.tensor[:, :, :1],
    }
    conditions = {name: refit(name, t, size, t.shape[2], extraction, size) for name, t in tensors.items()}
    truth = Truth(
        small.video,
        small.motion / size[1],
        after_first(mask, size),
        small.video[:, :, frames // 2],
        vectors=motion_of(small.video),
        mask=mask,
        color=scene.color[:, 0],
        shape=scene.shape[:, 0],
        direction=motion_class(scene)[0],
        camera=scene.background_velocity,
        camera_axes=visible_axes(at_side(small.video), mask),
        keep=F.interpolate(keep, (frames, *size), mode="nearest") > 0.5,
    )
    texts = captions(scene, motion=1.0, background=1.0)
    source = {
        "file": key,
        "seed": int(scene.seed),
        "text": texts[0],
        "start": 0.0,
        "frames": frames,
        "rate": config.rate,
    }
    return Examples([key], texts, conditions, truth, sketch.how["method"], sources=[source])


def motion_of(video: Tensor) -> Tensor:
    """Extract the motion field (B, 2, F, H, W) of videos (B, 3, F, H, W), in frame widths per frame.

    Smaller videos are enlarged to `FINE` pixels, because a codec's blocks are large compared to their objects. On a
    smooth moving background it finds little motion, because motion along a stripe is invisible.
    """
    size, plan = tuple(video.shape[-2:]), FramePlan(0.0, Fraction(8), video.shape[2])
    options = {"layout": "dense", "mode": "stream", "nominal_height": max(FINE, size[0])}
    return torch.cat([read_motion(clip[None], plan, size, **options).field for clip in video]) / size[1]


def motion_of_file(video: Tensor, config: Config) -> Tensor:
    """Extract the motion condition of a video (1, 3, F, H, W) as from a user's file: write the file, then read it."""
    extraction, rate = config.extraction, Fraction(config.rate).limit_denominator(1001)
    with TemporaryDirectory() as folder:
        clip, plan = write_video(Path(folder) / "clip.mp4", video, rate), FramePlan(0.0, rate, video.shape[2])
        options = Options(nominal_height=NOMINAL if extraction.motion_layout == "points" else None)
        return extract("motion", Source(clip, plan, clip_size(config), extraction), options)
