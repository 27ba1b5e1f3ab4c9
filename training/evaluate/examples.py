"""What checkpoints are evaluated on: scenes that no training has seen, with their conditions and what is true of them.

The conditions are made as users make them, out of the scene's frames by the extractors that the checkpoint's config
names, but for depth, which scenes know and no network has to guess. Motion comes out of a file: the clip is written
as videos are, and the file is read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.synthetic.captions import captions, motion_class
from training.data.synthetic.render import render, unit_distance
from training.data.synthetic.scenes import CLIP_FRAMES, OBJECT_COLORS, SHAPES, Scenes, sample_scenes, scene_seeds
from training.evaluate.camera import told_directions
from training.evaluate.objects import SEEN, as_seen
from vc_core.conditions import condition_size, drawing_size
from vc_core.config import Config
from vc_core.errors import UserError
from vc_core.extract import Options, Source, extract
from vc_core.extract.mask import masked_video
from vc_core.extract.motion.reencode import NOMINAL
from vc_core.extract.refit import refit
from vc_core.extract.sources import extract_condition
from vc_core.progress import Progress, reported
from vc_core.video import FramePlan, write_video

HELD_OUT = 2**32
"""Seed of the scenes to evaluate on: a recipe's seed is below 2**31, and those of the other parts are small."""
POOL = 2**16
"""Scenes of it among which are chosen."""
PACES = (3 / 64 / 15, 1 / 64, 2 / 64)
"""Slow, middle and fast: where each begins, of the object's way over the clip, in frame widths a frame. Slower ones,
which go less than 3 of 64 pixels, are left out: they do not tell whether they obey."""
FILMED = 256
"""Pixels a side at which scenes are drawn for the motion extractor: finer, and with the grain that codecs need."""


@dataclass(frozen=True)
class Truth:
    """What is true of N clips, and of scenes, one object each, what nobody knows of other clips: from the mask on.

    Motion is in frame widths a frame, x and y: of scenes exact, else as the measures see it in the clip.
    """

    video: Tensor  # (N, 3, F, H, W) in [0, 1], at the size to be composed
    motion: Tensor  # (N, 2, F, H, W)
    told: Tensor  # (N, F, H, W) bool, where that motion counts
    style: Tensor  # (N, 3, S, S), the style images
    other_style: Tensor | None = None  # the same, of the clips that others' conditions are taken from
    mask: Tensor | None = None  # (N, F, SEEN, SEEN) bool, where the object is to be seen
    color: Tensor | None = None  # (N,) index into OBJECT_COLORS
    shape: Tensor | None = None  # (N,) index into SHAPES
    direction: Tensor | None = None  # (N,) what the caption says of the way, see `direction_class`
    camera: Tensor | None = None  # (N, 2) how the background moves
    camera_axes: Tensor | None = None  # (N, 2, 2) in which directions that is to be seen, see `told_directions`
    keep: Tensor | None = None  # (N, 1, F, H, W) bool, what the mask condition keeps

    def of(self, rows: Tensor) -> Truth:
        """What is true of some of the clips, which may be the same one several times."""
        return Truth(*(None if value is None else value[rows] for value in vars(self).values()))


@dataclass(frozen=True)
class Examples:
    """N clips, to compose by and to measure against."""

    keys: list[str]  # tell the clips, each another one
    texts: list[str]  # one caption each; of scenes, of the object, its motion and the background
    conditions: dict[str, Tensor]  # (N, C, F or 1, H, W)
    truth: Truth
    sketched: str | None = None  # the method that drew the sketches, where there are any
    skipped: list[str] = field(default_factory=list)  # those that could not be read, each with the reason

    def __len__(self) -> int:
        return len(self.texts)


def joined(parts: Sequence[Examples], skipped: Sequence[str] = ()) -> Examples:
    """Clips of the same conditions one after the other, those that were skipped beside them."""
    truths = zip(*(vars(one.truth).values() for one in parts), strict=True)
    truth = Truth(*(None if values[0] is None else torch.cat(values) for values in truths))
    return Examples(
        [key for one in parts for key in one.keys],
        [text for one in parts for text in one.texts],
        {name: torch.cat([one.conditions[name] for one in parts]) for name in parts[0].conditions},
        replace(truth, other_style=truth.style.roll(-1, 0)),
        parts[0].sketched,
        list(skipped),
    )


# --- Scenes ---------------------------------------------------------------------------------------------------------


def held_out_scenes(count: int) -> Scenes:
    """Scenes of `HELD_OUT` with one object, as of two none could be told to be the one that is meant. It is whole in
    the first frame, as of one that is cut no shape could be told, and later half of it at least is in the frame.

    Shapes, colours and paces take turns, so that few scenes have all of them and neighbours differ. The first scenes
    are the same however many there are.

    Raises:
        UserError: more than there are.
    """
    scenes, kinds = _pool()
    turns = math.lcm(len(SHAPES), len(OBJECT_COLORS), len(SHAPES) * len(PACES))
    chosen = []
    for number in range(count):
        # The pace moves on with each round of the shapes: else each shape would always have the same one.
        pace = (number + number // len(SHAPES)) % len(PACES)
        wanted = torch.tensor([number % len(SHAPES), number % len(OBJECT_COLORS), pace])
        found = (kinds == wanted).all(1).nonzero(as_tuple=True)[0]
        if number // turns >= len(found):
            raise UserError(f"{count} clips are more than there are: expected at most {number}.")
        chosen.append(int(found[number // turns]))
    return scenes[chosen]


@cache
def _pool() -> tuple[Scenes, Tensor]:
    """The scenes that can be taken, and of each its shape, colour and pace (N, 3)."""
    scenes = sample_scenes(scene_seeds(HELD_OUT, 0, POOL))
    pace = torch.bucketize(scenes.displacement()[:, 0].norm(dim=1) / (CLIP_FRAMES - 1), torch.tensor(PACES)) - 1
    centers = scenes.centers(torch.arange(CLIP_FRAMES))[:, 0]  # (N, F, 2)
    reach = torch.tensor([_reach_of(shape) for shape in SHAPES])[scenes.shape[:, 0]] * scenes.radius[:, 0]
    far = (centers - 0.5).abs().amax(2)  # (N, F)
    seen = (far[:, 0] + reach <= 0.5) & (far.amax(1) + reach / 2 <= 0.5)
    (fit,) = ((scenes.count == 1) & seen & (pace >= 0)).nonzero(as_tuple=True)
    return scenes[fit], torch.stack([scenes.shape[:, 0], scenes.color[:, 0], pace], 1)[fit]


def _reach_of(shape: str) -> float:
    """How far a shape of radius 1 reaches from its centre at most."""
    at = torch.linspace(-2, 2, 401)
    y, x = torch.meshgrid(at, at, indexing="ij")
    return float(torch.hypot(x, y)[unit_distance(shape, x, y) <= 0.02].max())


def held_out_clips(count: int, config: Config, progress: Progress | None = None) -> Examples:
    """The scenes that a checkpoint of this config is evaluated on.

    Scenes are square and planned for CLIP_FRAMES frames: so are the clips, at the config's shorter side and at most
    that long.
    """
    scenes, frames = held_out_scenes(count), min(config.frames, CLIP_FRAMES)
    numbers = reported("scenes", range(count), progress)
    return joined([_clip(f"scene {number + 1}", scenes[number], config, frames) for number in numbers])


def clip_size(config: Config) -> tuple[int, int]:
    """(height, width) of the videos of scenes that a checkpoint is evaluated with."""
    side = min(config.height, config.width) // 8 * 8
    return side, side


def after_first(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask (B, F, H, W) bool at `size`, but for the first frame, before which nothing moves."""
    there = F.interpolate(mask.float(), size, mode="nearest") > 0.5
    there[:, 0] = False
    return there


def _clip(key: str, scene: Scenes, config: Config, frames: int) -> Examples:
    size, extraction = clip_size(config), config.extraction
    large_size = drawing_size("depth", size)
    small = render(scene, size[0], frames, what=("video", "motion"))
    large = render(scene, large_size[0], frames, what=("video", "depth", "object_mask"))
    filmed = render(scene, FILMED, frames, what=("video",)).video
    seen = render(scene, SEEN, frames, what=("object_mask",)).object_mask[:, 0] > 0.5

    sketched = extract_condition("sketch", Source(large.video, None, size, extraction))
    grow = 2 * int(1 + large_size[0] / 32) + 1  # in the middle of what training draws
    keep = 1 - F.max_pool3d(large.object_mask, (1, grow, grow), stride=1, padding=(0, grow // 2, grow // 2))
    made = {
        "motion": motion_of_file(filmed, config),
        "depth": large.depth,
        "sketch": sketched.tensor,
        "mask": masked_video(large.video, keep, condition_size("mask", size, extraction.condition_scale)),
        "single_image": large.video[:, :, :1],
        "single_sketch": sketched.tensor[:, :, :1],
    }
    conditions = {name: refit(name, one, size, one.shape[2], extraction, size) for name, one in made.items()}
    truth = Truth(
        small.video,
        small.motion / size[1],
        after_first(seen, size),
        small.video[:, :, frames // 2],
        mask=seen,
        color=scene.color[:, 0],
        shape=scene.shape[:, 0],
        direction=motion_class(scene)[0],
        camera=scene.background_velocity,
        camera_axes=told_directions(as_seen(small.video), seen),
        keep=F.interpolate(keep, (frames, *size), mode="nearest") > 0.5,
    )
    return Examples([key], captions(scene, motion=1.0, background=1.0), conditions, truth, sketched.how["method"])


def motion_of_file(video: Tensor, config: Config) -> Tensor:
    """The motion condition of a video (1, 3, F, H, W) as a user's file gives it: written, and the file read."""
    extraction, rate = config.extraction, Fraction(config.rate).limit_denominator(1001)
    with TemporaryDirectory() as folder:
        clip, plan = write_video(Path(folder) / "clip.mp4", video, rate), FramePlan(0.0, rate, video.shape[2])
        options = Options(nominal_height=NOMINAL if extraction.motion_layout == "points" else None)
        return extract("motion", Source(clip, plan, clip_size(config), extraction), options)
