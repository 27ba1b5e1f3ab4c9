"""`./vc demo`: compose videos from a clip, by its real motion vectors, their reverse, depth, a mask and sketches."""

import json
import math
import shutil
from collections.abc import Mapping
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
from .extract.pictures import picture_of
from .extract.sources import Options, Source, extract
from .pipeline import compose
from .progress import Progress
from .video import labelled_grid, plan_frames, probe, read_frames, resize_crop, write_contact_sheet, write_video

TEXT, CLEAN = "a red circle on a background of blue and white stripes", "a red circle on a blue and white gradient"
"""Texts for `draw_clip` with stripes, and with a gradient."""
LABELS = {
    "motion": "motion vectors",
    "reversed": "motion reversed",
    "depth": "depth",
    "mask": "mask",
    "sketch": "sketches",
}
"""Video of the demo -> what it was composed from."""
RED = (0.88, 0.13, 0.13)
STRIPES = ((0.26, 0.35, 0.77), (0.83, 0.83, 0.83))
SIZE, FRAMES, RATE = 256, 16, 8
RADIUS = 0.18
"""Radius of the disc in frame widths. The bundled checkpoint was trained on objects of this size."""
MARGIN = 1 / 16
"""Width in frame widths of what a mask repaints around the disc, as in training: the new object is smaller."""
VELOCITY = (1.4 / 64, 0.0)
"""Velocity of the disc in frame widths per frame; right and down are positive."""


def draw_clip(
    velocity: tuple[float, float] = VELOCITY, size: int = SIZE, frames: int = FRAMES, background: str = "stripes"
) -> Tensor:
    """Draw a red disc that starts in the middle of a background, stripes or a gradient, `(1, 3, F, size, size)` in
    [0, 1].

    Both surfaces have grain, because a codec's motion search cannot match flat surfaces.
    """
    x, y, dx, dy = _positions(velocity, size, frames)

    def grain(u: Tensor, v: Tensor, seed: int) -> Tensor:
        noise = torch.rand(1, 1, 80, 80, generator=torch.Generator().manual_seed(seed)) - 0.5
        grid = torch.stack([u, v], -1).reshape(1, -1, size, 2)
        return 0.18 * F.grid_sample(noise, grid, padding_mode="reflection", align_corners=False).reshape(u.shape)

    along = x * 0.8 + y * 0.6
    wave = torch.sin(2 * math.pi * along / 0.3)
    wave = (
        wave * (1.5 - 0.5 * wave * wave) if background == "stripes" else torch.cos(2 * math.pi * (along / 1.6 - 0.35))
    )
    first, second = (torch.tensor(color).view(3, 1, 1) for color in STRIPES)
    ground = torch.lerp(first, second, 0.5 + 0.5 * wave) + grain(2 * x - 1, 2 * y - 1, 1)
    shade = 0.88 + 0.12 * torch.sin(2 * math.pi * (dx + dy) / 0.13)
    disc = torch.tensor(RED).view(3, 1, 1, 1) * shade + grain(2 * dx, 2 * dy, 2)
    coverage = ((RADIUS - torch.hypot(dx, dy)) * size + 0.5).clamp(0, 1)
    return torch.lerp(ground[:, None].expand(3, frames, size, size), disc, coverage)[None].clamp(0, 1)


def disc_mask(
    velocity: tuple[float, float] = VELOCITY, size: int = SIZE, frames: int = FRAMES, margin: float = 0.0
) -> Tensor:
    """Return masks `(F, size, size)` in {0, 1} of `draw_clip`'s disc, and of a margin around it in frame widths."""
    _, _, dx, dy = _positions(velocity, size, frames)
    return (torch.hypot(dx, dy) < RADIUS + margin).float()


def _positions(velocity: tuple[float, float], size: int, frames: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the positions x, y of pixels in the frame `(H, W)`, and relative to the disc's centre `(F, H, W)`."""
    centres = (torch.arange(size) + 0.5) / size
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    t = torch.arange(frames)[:, None, None]
    return x, y, x - 0.5 - velocity[0] * t, y - 0.5 - velocity[1] * t


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


def write_source(
    composer: VideoComposer, clip: Path, velocity: tuple[float, float] = VELOCITY, frames: int | None = None
) -> Source:
    """Write the clip in front of a gradient, and return it as a source of conditions for this checkpoint."""
    config = composer.config
    frames = frames or config.frames
    write_video(clip, draw_clip(velocity, frames=frames, background="gradient"), RATE)
    return Source(clip, plan_frames(probe(clip), frames, rate=RATE), (config.height, config.width), config.extraction)


def motions(source: Source) -> dict[str, Condition]:
    """Return the motion in the clip's file, "motion", and its reverse, "reversed"."""
    field = extract("motion", source)
    return {"motion": Condition("motion", field), "reversed": Condition("motion", reversed_motion(field))}


def drawings(source: Source) -> dict[str, Condition]:
    """Return the depth of the clip's scene, a mask that repaints the disc and a margin around it, and sketches. The
    velocity is the default one of `write_source`."""
    disc, area = (disc_mask(frames=source.plan.frames, margin=margin)[None, None] for margin in (0.0, MARGIN))
    options = Options(depth_maps=disc, mask=area, sketch_method="edges")
    return {name: Condition(name, extract(name, source, options)) for name in ("depth", "mask", "sketch")}


@dataclass(frozen=True)
class Trial:
    """Videos composed from one clip, by name, and the disc's measured and expected `displacement` in each."""

    videos: dict[str, Tensor]
    moved: dict[str, list[float]]
    expected: dict[str, list[float]]


def try_conditions(
    composer: VideoComposer,
    source: Source,
    conditions: Mapping[str, Condition],
    seed: int = 0,
    progress: Progress | None = None,
    sampling: Sampling | None = None,
) -> Trial:
    """Compose a video from each condition, see `motions` and `drawings`. Text, noise and settings are the same, and the
    first frame is the single image of all, but not next to a mask, which shows the surroundings itself."""
    image = Condition("single_image", extract("single_image", source))
    settings = {"frames": source.plan.frames, "seed": seed, "sampling": sampling, "progress": progress}
    videos = {
        name: compose(composer, CLEAN, conditions=[chosen] if name == "mask" else [chosen, image], **settings)
        for name, chosen in conditions.items()
    }
    target = displacement(read_frames(source.clip, source.plan))
    expected = {name: [-value for value in target] if name == "reversed" else target for name in conditions}
    return Trial(videos, {name: displacement(video) for name, video in videos.items()}, expected)


def run_demo(out: Path, checkpoint: Path | None, seed: int, progress: Progress | None = None) -> list[str]:
    """Write the clip, the videos composed from it, demo.mp4, sheet.png and measured.json into `out`; return a
    summary."""
    composer = VideoComposer.load(checkpoint or BUNDLED)
    with TemporaryDirectory() as folder:
        clip = Path(folder) / "source.mp4"
        source = write_source(composer, clip)
        known = composer.config.unet.conditions
        conditions = {name: c for name, c in (motions(source) | drawings(source)).items() if c.name in known}
        trial = try_conditions(composer, source, conditions, seed, progress)
        video, image = read_frames(clip, source.plan), extract("single_image", source)
        make_folder(out)
        with written_beside(out / clip.name) as temporary:
            shutil.copyfile(clip, temporary)

    scale = max(1, SIZE // min(composer.config.height, composer.config.width))
    for name, result in trial.videos.items():
        write_video(out / f"{name}.mp4", result, RATE, scale=scale)
    inputs = [("clip", video), *((LABELS[name], picture_of(c.name, c.tensor)) for name, c in conditions.items())]
    outputs = [
        ("first frame", resize_crop(image, (SIZE, SIZE))),
        *(("result", video) for video in trial.videos.values()),
    ]
    rows = [row for pair in zip(inputs, outputs, strict=True) for row in pair]
    write_contact_sheet(out / "sheet.png", rows, cell=96, title=f"./vc demo: {CLEAN}")
    write_video(out / "demo.mp4", labelled_grid([inputs, outputs]), RATE)
    moved = {"source": displacement(video), **trial.moved}
    measured = {
        "text": CLEAN,
        "seed": seed,
        "checkpoint": composer.config.name,
        "unit": "frame widths over the clip, right and down positive",
        "displacement": {name: [None if math.isnan(v) else v for v in values] for name, values in moved.items()},
        "commanded": trial.expected,
    }
    with written_beside(out / "measured.json") as temporary:
        temporary.write_text(json.dumps(measured, indent=2) + "\n")
    results = [
        f"{out / name}.mp4: the disc moved {trial.moved[name][0]:+.2f} frame widths; expected {x:+.2f}"
        for name, (x, _) in trial.expected.items()
    ]
    sheets = f"{out / 'sheet.png'} and {out / 'demo.mp4'}: the clip, its conditions, and the results"
    return [*results, sheets, f"{out / 'measured.json'}: the measured displacements"]
