"""`./vc demo`: from a clip with real motion vectors, compose one video with its motion and one with the reverse."""

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from torch import Tensor

from .checkpoint.reading import BUNDLED
from .composer import VideoComposer
from .conditions import Condition
from .diffusion.samplers import Sampling
from .disk import make_folder, written_beside
from .extract.pictures import flow_picture
from .extract.sources import Source, extract
from .pipeline import compose
from .progress import Progress
from .video import plan_frames, probe, read_frames, resize_crop, write_contact_sheet, write_video

TEXT = "a red circle on a background of blue and white stripes"
RED = (0.88, 0.13, 0.13)
STRIPES = ((0.26, 0.35, 0.77), (0.83, 0.83, 0.83))
SIZE, FRAMES, RATE = 256, 16, 8
VELOCITY = (1.4 / 64, 0.0)
"""Velocity of the disc in frame widths per frame; right and down are positive."""


def draw_clip(velocity: tuple[float, float] = VELOCITY, size: int = SIZE, frames: int = FRAMES) -> Tensor:
    """Draw a red disc that starts in the middle of a striped background, `(1, 3, F, size, size)` in [0, 1].

    Both surfaces have grain, because a codec's motion search cannot match flat surfaces.
    """
    centres = (torch.arange(size) + 0.5) / size
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    t = torch.arange(frames)[:, None, None]
    dx, dy = x - 0.5 - velocity[0] * t, y - 0.5 - velocity[1] * t  # (F, H, W), relative to the disc's centre

    def grain(u: Tensor, v: Tensor, seed: int) -> Tensor:
        noise = torch.rand(1, 1, 80, 80, generator=torch.Generator().manual_seed(seed)) - 0.5
        grid = torch.stack([u, v], -1).reshape(1, -1, size, 2)
        return 0.18 * F.grid_sample(noise, grid, padding_mode="reflection", align_corners=False).reshape(u.shape)

    wave = torch.sin(2 * math.pi * (x * 0.8 + y * 0.6) / 0.3)
    first, second = (torch.tensor(color).view(3, 1, 1) for color in STRIPES)
    ground = torch.lerp(first, second, 0.5 + 0.5 * wave * (1.5 - 0.5 * wave * wave)) + grain(2 * x - 1, 2 * y - 1, 1)
    shade = 0.88 + 0.12 * torch.sin(2 * math.pi * (dx + dy) / 0.13)
    disc = torch.tensor(RED).view(3, 1, 1, 1) * shade + grain(2 * dx, 2 * dy, 2)
    coverage = ((0.14 - torch.hypot(dx, dy)) * size + 0.5).clamp(0, 1)
    return torch.lerp(ground[:, None].expand(3, frames, size, size), disc, coverage)[None].clamp(0, 1)


def follow(video: Tensor, color: tuple[float, float, float], others: tuple[tuple[float, float, float], ...]) -> Tensor:
    """Follow an object of a known colour in a video `(1, 3, F, H, W)`; return its centre `(F, 2)` as x, y in pixels.

    The object consists of the pixels that are close to its colour, and closer to it than to any of `others`. The centre
    is NaN in frames with less than 1/1000 of such pixels.
    """
    palette = torch.tensor([color, *others])
    distance = (video[0][None] - palette[:, :, None, None, None]).norm(dim=1)  # (colors, F, H, W)
    inside = ((distance.argmin(0) == 0) & (distance[0] < 0.5)).float()
    y, x = (torch.arange(side) + 0.5 for side in video.shape[-2:])
    count = inside.sum((1, 2))
    count = torch.where(count < inside[0].numel() / 1000, math.nan, count)
    return torch.stack([(inside * x).sum((1, 2)), (inside * y[:, None]).sum((1, 2))], dim=1) / count[:, None]


def displacement(video: Tensor) -> list[float]:
    """Return the displacement of the red disc from the first to the last frame, x and y in frame widths; NaN if it is
    lost."""
    middle = tuple(sum(c) / 2 for c in zip(*STRIPES, strict=True))
    centers = follow(video, RED, (*STRIPES, middle))
    return ((centers[-1] - centers[0]) / video.shape[-1]).tolist()


def reversed_motion(field: Tensor) -> Tensor:
    """Return the motion field of the clip rotated by 180°: an object in the middle then moves in the opposite
    direction."""
    return -field.flip(-1, -2)


@dataclass(frozen=True)
class MotionTrial:
    """The two videos composed from one clip, "motion" and "reversed". Displacements are those of `displacement`."""

    videos: dict[str, Tensor]
    moved: dict[str, list[float]]  # "source" and the two videos
    commanded: dict[str, list[float]]
    rows: list[tuple[str, Tensor]]  # of a contact sheet: the source, its conditions, the results


def try_motion(
    composer: VideoComposer,
    clip: Path,
    velocity: tuple[float, float] = VELOCITY,
    frames: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    sampling: Sampling | None = None,
) -> MotionTrial:
    """Write the clip, extract its conditions from the file, and compose with its motion and with the reverse.

    The two videos differ only in the motion field: text, single image, noise and settings are the same.
    """
    config = composer.config
    frames = frames or config.frames
    write_video(clip, draw_clip(velocity, frames=frames), RATE)
    source = Source(clip, plan_frames(probe(clip), frames, rate=RATE), (config.height, config.width), config.extraction)
    video, image, motion = read_frames(clip, source.plan), extract("single_image", source), extract("motion", source)
    rows, videos = [("source", video), ("single image", resize_crop(image, (SIZE, SIZE)))], {}
    for name, field in (("motion", motion), ("reversed", reversed_motion(motion))):
        conditions = [Condition("motion", field), Condition("single_image", image)]
        settings = {"frames": frames, "seed": seed, "sampling": sampling, "progress": progress}
        videos[name] = compose(composer, TEXT, conditions=conditions, **settings)
        rows += [(f"{name}: field", flow_picture(field)), (f"{name}: result", videos[name])]
    moved = {"source": displacement(video), **{name: displacement(result) for name, result in videos.items()}}
    commanded = {"motion": moved["source"], "reversed": [-value for value in moved["source"]]}
    return MotionTrial(videos, moved, commanded, rows)


def run_demo(out: Path, checkpoint: Path | None, seed: int, progress: Progress | None = None) -> list[str]:
    """Write source.mp4, motion.mp4, reversed.mp4, sheet.png and measured.json into `out`; return a summary."""
    composer = VideoComposer.load(checkpoint or BUNDLED)
    with TemporaryDirectory() as folder:
        clip = Path(folder) / "source.mp4"
        trial = try_motion(composer, clip, seed=seed, progress=progress)
        make_folder(out)
        with written_beside(out / clip.name) as temporary:
            shutil.copyfile(clip, temporary)

    scale = max(1, SIZE // min(composer.config.height, composer.config.width))
    for name, video in trial.videos.items():
        write_video(out / f"{name}.mp4", video, RATE, scale=scale)
    write_contact_sheet(out / "sheet.png", trial.rows, title=f"./vc demo: {TEXT}")
    measured = {
        "text": TEXT,
        "seed": seed,
        "checkpoint": composer.config.name,
        "unit": "frame widths over the clip, right and down positive",
        "displacement": {name: [None if math.isnan(v) else v for v in moved] for name, moved in trial.moved.items()},
        "commanded": trial.commanded,
    }
    with written_beside(out / "measured.json") as temporary:
        temporary.write_text(json.dumps(measured, indent=2) + "\n")
    results = [
        f"{out / name}.mp4: the disc moved {trial.moved[name][0]:+.2f} frame widths; the motion condition asked for "
        f"{x:+.2f}"
        for name, (x, _) in trial.commanded.items()
    ]
    sheet = f"{out / 'sheet.png'}: the source, its conditions and both results"
    return [*results, sheet, f"{out / 'measured.json'}: the measured displacements"]
