"""`./vc demo`: a clip with real motion vectors in, two videos out: one that moves as the clip does, one against it."""

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
"""Of the disc, in frame widths a frame, right and down positive."""


def draw_clip(velocity: tuple[float, float] = VELOCITY, size: int = SIZE, frames: int = FRAMES) -> Tensor:
    """A textured red disc that starts in the middle of textured stripes, `(1, 3, F, size, size)` in [0, 1].

    Both surfaces have a grain of their own, since a codec's motion search finds nothing to hold on to where a
    surface is flat.
    """
    at = (torch.arange(size) + 0.5) / size
    y, x = torch.meshgrid(at, at, indexing="ij")
    t = torch.arange(frames)[:, None, None]
    dx, dy = x - 0.5 - velocity[0] * t, y - 0.5 - velocity[1] * t  # (F, H, W), from the disc's centre

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
    """Where an object of a known colour is: its centre `(F, 2)` as x, y in pixels, from `(1, 3, F, H, W)`.

    The object is the pixels that are near its colour, and nearer than to each of `others`; NaN where there are fewer
    than one in a thousand.
    """
    palette = torch.tensor([color, *others])
    distance = (video[0][None] - palette[:, :, None, None, None]).norm(dim=1)  # (colors, F, H, W)
    found = ((distance.argmin(0) == 0) & (distance[0] < 0.5)).float()
    y, x = (torch.arange(side) + 0.5 for side in video.shape[-2:])
    count = found.sum((1, 2))
    count = torch.where(count < found[0].numel() / 1000, math.nan, count)
    return torch.stack([(found * x).sum((1, 2)), (found * y[:, None]).sum((1, 2))], dim=1) / count[:, None]


def displacement(video: Tensor) -> list[float]:
    """How far the red disc moved from the first frame to the last, x and y in frame widths; NaN where it is lost."""
    middle = tuple(sum(c) / 2 for c in zip(*STRIPES, strict=True))
    centers = follow(video, RED, (*STRIPES, middle))
    return ((centers[-1] - centers[0]) / video.shape[-1]).tolist()


def reversed_motion(field: Tensor) -> Tensor:
    """The motion field of the clip turned by 180 degrees: what was in the middle moves the opposite way from there."""
    return -field.flip(-1, -2)


@dataclass(frozen=True)
class MotionTrial:
    """The two videos composed from one clip, "motion" and "reversed". Displacements as `displacement` gives them."""

    videos: dict[str, Tensor]
    moved: dict[str, list[float]]  # "source" and the two videos
    commanded: dict[str, list[float]]
    rows: list[tuple[str, Tensor]]  # of a contact sheet: the source, what the network saw of it, what it made


def try_motion(
    composer: VideoComposer,
    clip: Path,
    velocity: tuple[float, float] = VELOCITY,
    frames: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> MotionTrial:
    """Writes the clip, extracts its conditions from the file, and composes along its motion and against it.

    The two videos differ in the motion field alone: text, single image, noise and settings are the same.
    """
    config = composer.config
    frames = frames or config.frames
    write_video(clip, draw_clip(velocity, frames=frames), RATE)
    source = Source(clip, plan_frames(probe(clip), frames, rate=RATE), (config.height, config.width), config.extraction)
    seen, image, motion = read_frames(clip, source.plan), extract("single_image", source), extract("motion", source)
    rows, videos = [("source", seen), ("single image", resize_crop(image, (SIZE, SIZE)))], {}
    for name, field in (("motion", motion), ("reversed", reversed_motion(motion))):
        given = [Condition("motion", field), Condition("single_image", image)]
        videos[name] = compose(composer, TEXT, conditions=given, frames=frames, seed=seed, progress=progress)
        rows += [(f"{name}: field", flow_picture(field)), (f"{name}: result", videos[name])]
    moved = {"source": displacement(seen), **{name: displacement(video) for name, video in videos.items()}}
    commanded = {"motion": moved["source"], "reversed": [-value for value in moved["source"]]}
    return MotionTrial(videos, moved, commanded, rows)


def run_demo(out: Path, checkpoint: Path | None, seed: int, progress: Progress | None = None) -> list[str]:
    """Writes source.mp4, motion.mp4, reversed.mp4, sheet.png and measured.json into `out`; returns a summary."""
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
    obeyed = [
        f"{out / name}.mp4: the disc moved {trial.moved[name][0]:+.2f} frame widths where {x:+.2f} were commanded"
        for name, (x, _) in trial.commanded.items()
    ]
    shown = f"{out / 'sheet.png'}: what the network saw and what it made"
    return [*obeyed, shown, f"{out / 'measured.json'}: the figures"]
