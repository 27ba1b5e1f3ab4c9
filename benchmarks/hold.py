"""What keeping and dragging achieve, on held-out synthetic scenes: ./vc bench hold [CHECKPOINT]

Cut and drag: objects and backgrounds that move slowly, with the motion condition alone, with a dragged draft alone, and
with both. The displacement is the measured one divided by the commanded one: the slope over all videos; the medians at
each speed and sideways, and the mean error of the displacement in pixels of 64 per frame, are next to it. `rest` is how
much the pixels that nothing moves differ from the first frame, in percent of the range of RGB.

Keyframes: the first and last frame of a scene are kept, by the mask condition, by replacing the latent, and by both.
The error is of the kept frames and of the frames next to them, in percent of the range of RGB; the jump is the change
from a kept frame to the next one, divided by the usual change from frame to frame in the scene.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from training.data.synthetic.captions import captions
from training.evaluate.camera import camera_step, visible_axes
from training.evaluate.examples import Examples, held_out_clips, held_out_scenes
from training.evaluate.measures import path
from training.evaluate.objects import SIDE, at_side, find_objects
from vc_core import Condition, Sampling, compose
from vc_core.checkpoint.reading import BUNDLED
from vc_core.composer import VideoComposer
from vc_core.extract.drawing import Rectangle
from vc_core.extract.keyframes import keyframes
from vc_core.extract.motion.camera import CameraMove, camera_field, condition_from_field
from vc_core.extract.motion.drag import camera_paths, drag, tracks_paths
from vc_core.extract.motion.tracks import Track, tracks_field

SPEEDS = (0.25, 0.5, 0.75)
"""Pixels of 64 per frame."""
DIRECTIONS = ((1, 0), (0, 1), (-1, 0), (0, -1))
DRAG = (0.5, 0.75)
BATCH = 4

Command = tuple[Tensor, object, object]
"""Displacement per frame (2,) in pixels of 64, the motion field, and the paths of a dragged image."""


def scenes(count: int, composer: VideoComposer, backgrounds: Sequence[str] = ("",)) -> Examples:
    """Return scenes with one of these backgrounds, described without their own motion.

    The motion of a gradient cannot be measured in a composed video: it is fainter than the autoencoder's errors.
    """
    texts = captions(held_out_scenes(6 * count), motion=0.0, background=1.0)
    rows = [row for row, text in enumerate(texts) if any(word in text for word in backgrounds)][:count]
    clips = held_out_clips(rows[-1] + 1, composer.config)
    conditions = {name: tensor[rows] for name, tensor in clips.conditions.items()}
    keys = [clips.keys[row] for row in rows]
    return Examples(keys, [texts[row] for row in rows], conditions, clips.truth.of(torch.tensor(rows)))


def object_command(clips: Examples, number: int, speed: float, size: tuple[int, int], frames: int) -> Command:
    """Move a scene's object towards the middle of the frame, so that it stays visible."""
    mask = clips.truth.mask[number, 0]
    rows, columns = (side.nonzero()[:, 0] for side in (mask.any(1), mask.any(0)))
    scale = size[1] / SIDE
    box = [scale * float(v) for v in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]
    center = torch.tensor([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])
    axis = (number // len(SPEEDS)) % 2
    step = torch.zeros(2)
    step[axis] = speed * (1.0 if center[axis] < size[1] / 2 else -1.0)
    track = Track(torch.stack([center, center + step * scale * (frames - 1)]).double(), Rectangle(*box))
    field = tracks_field([track], frames, size)
    return step, field, lambda points: tracks_paths([track], frames, size, points)


def camera_command(clips: Examples, number: int, speed: float, size: tuple[int, int], frames: int) -> Command:
    """Pan over a scene."""
    step = torch.tensor(DIRECTIONS[(number // len(SPEEDS)) % 4], dtype=torch.float32) * speed
    move = CameraMove(tuple((-step * (frames - 1) / SIDE).tolist()))
    return step, camera_field(move, frames, size), lambda points: camera_paths(move, frames, size, points)


def moved(kind: str, video: Tensor, clips: Examples, rows: Sequence[int]) -> Tensor:
    """Measure the displacement per frame (B, 2) in pixels of 64; NaN where it is not visible."""
    objects = find_objects(video)
    if kind == "object":
        return path(objects.mask)[:, -1] * SIDE / (video.shape[2] - 1)
    step = camera_step(at_side(video), objects.mask) * SIDE
    axes = visible_axes(at_side(clips.truth.video[list(rows)]), clips.truth.mask[list(rows)])
    return torch.where(axes.isnan().any((1, 2))[:, None], torch.nan, step)


def _rms(difference: Tensor, where: Tensor) -> Tensor:
    """Return the root mean square (B,) over the pixels `where` (B, 1, 1, H, W); NaN if there are none."""
    count = where.expand_as(difference).sum((1, 2, 3, 4))
    return ((difference * where).square().sum((1, 2, 3, 4)) / count).sqrt()


def dragged(composer: VideoComposer, clips: Examples, kind: str, arms: dict, steps: int) -> Iterable[str]:
    frames, size = clips.truth.video.shape[2], tuple(clips.truth.video.shape[-2:])
    command = object_command if kind == "object" else camera_command
    numbers = range(len(clips))
    orders = [command(clips, n, SPEEDS[n % len(SPEEDS)], size, frames) for n in numbers]
    fields = torch.cat([condition_from_field(o[1], composer.config.extraction, size) for o in orders])
    target, fields_at = torch.stack([o[0] for o in orders]), torch.cat([o[1] for o in orders])
    along = target / target.norm(dim=1, keepdim=True)
    for name, (with_motion, fractions) in arms.items():
        results, rest = [], []
        for first in range(0, len(clips), BATCH):
            rows = list(numbers[first : first + BATCH])
            conditions = [Condition("single_image", clips.conditions["single_image"][rows])]
            conditions += [Condition("motion", fields[rows])] if with_motion else []
            latents = {}
            if fractions is not None:
                drafts = [drag(clips.truth.video[n : n + 1, :, 0], size, orders[n][2], *fractions) for n in rows]
                latents = {
                    "init": torch.cat([d.init for d in drafts]),
                    "denoise_mask": torch.cat([d.mask for d in drafts]),
                }
            video = compose(composer, [clips.texts[n] for n in rows], conditions=conditions, frames=frames, size=size,
                            batch=len(rows), seed=first, sampling=Sampling(steps=steps), **latents)  # fmt: skip
            results.append(moved(kind, video, clips, rows))
            still = fields_at[rows].abs().amax((1, 2), keepdim=True) == 0  # (B, 1, 1, H, W)
            first_frame = clips.truth.video[rows][:, :, :1]
            rest += [float(e) for e in _rms((video - first_frame)[:, :, 1:], still) if e == e]
        measured = torch.cat(results)
        ahead = (measured * along).sum(1)
        speed, visible = target.norm(dim=1), ~ahead.isnan()
        slope = float((ahead * speed)[visible].sum() / speed[visible].square().sum())
        side = (measured - ahead[:, None] * along).norm(dim=1)
        error = (measured - target).norm(dim=1)
        cells = [f"{slope:.2f}", *(f"{float((ahead / speed)[speed == s].nanmedian()):.2f}" for s in SPEEDS)]
        changed = f"{100 * sum(rest) / len(rest):.1f}" if rest else "-"
        cells += [
            changed,
            f"{float(side.nanmedian()):.2f}",
            f"{float(error.nanmean()):.2f}",
            str(int((~visible).sum())),
        ]
        yield f"| {kind} | {name} | {' | '.join(cells)} |"


def composed(
    composer: VideoComposer, clips: Examples, drafts: list, arm: tuple[bool, bool, bool], steps: int
) -> Tensor:
    """Compose every scene with its draft: shown by the mask condition, held in the latent, and its first frame."""
    truth, videos = clips.truth.video, []
    size = tuple(truth.shape[-2:])
    shown, in_latent, first_image = arm
    for first in range(0, len(clips), BATCH):
        rows = list(range(len(clips))[first : first + BATCH])
        conditions, latents = [], {}
        if shown:
            conditions += [
                Condition("mask", torch.cat([drafts[n].mask_condition(size, composer.config) for n in rows]))
            ]
        if first_image:
            conditions += [Condition("single_image", clips.conditions["single_image"][rows])]
        if in_latent:
            latents = {"init": torch.cat([drafts[n].init for n in rows])}
            latents["denoise_mask"] = torch.cat([drafts[n].mask for n in rows])
        videos.append(
            compose(
                composer,
                [clips.texts[n] for n in rows],
                conditions=conditions,
                frames=truth.shape[2],
                size=size,
                batch=len(rows),
                seed=first,
                sampling=Sampling(steps=steps),
                **latents,
            )
        )
    return torch.cat(videos)


def kept(composer: VideoComposer, clips: Examples, places: Sequence[int], arms: dict, steps: int) -> Iterable[str]:
    truth = clips.truth.video
    frames, size = truth.shape[2], tuple(truth.shape[-2:])
    usual = (truth[:, :, 1:] - truth[:, :, :-1]).square().mean((1, 2, 3, 4)).sqrt()
    numbers = sorted(place % frames for place in places)
    others = [number for number in range(frames) if number not in numbers]
    joins = [(a, b) for a, b in pairwise(range(frames)) if (a in numbers) != (b in numbers)]
    near = [b if a in numbers else a for a, b in joins]
    drafts = [keyframes({n: video[None, :, n] for n in numbers}, frames, size) for video in truth]
    for name, arm in arms.items():
        video = composed(composer, clips, drafts, arm, steps)
        # The kept frames as users see them: those of the source in an extension.
        change = torch.stack([video[:, :, b] - video[:, :, a] for a, b in joins]).square().mean((0, 2, 3, 4)).sqrt()
        errors = [_error(video, truth, chosen) for chosen in (numbers, near, others)]
        yield f"| {name} | {' | '.join(errors)} | {float((change / usual).median()):.2f} |"


def _error(video: Tensor, truth: Tensor, frames: Sequence[int]) -> str:
    return f"{100 * float((video - truth)[:, :, frames].square().mean((1, 2, 3, 4)).sqrt().mean()):.1f}"


DRAG_ARMS = {
    "motion condition": (True, None),
    "drag": (False, DRAG),
    "both": (True, DRAG),
}
KEEPS = (1, 2, 4, 6, 8)
EXTENSION_ARMS = {
    "latent replaced": (False, True, False),
    "latent replaced, and single_image": (False, True, True),
    "both": (True, True, False),
    "both, and single_image": (True, True, True),
}
PARTS = ("object", "camera", "keyframes", "extension")
KEY_ARMS = {
    "text alone": (False, False, False),
    "mask condition": (True, False, False),
    "latent replaced": (False, True, False),
    "both": (True, True, False),
    "both, and single_image": (True, True, True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=BUNDLED, help="default: the bundled one")
    parser.add_argument("--clips", type=int, default=24, help="number of scenes (default: 24)")
    parser.add_argument("--steps", type=int, default=12, help="sampling steps (default: 12)")
    parser.add_argument("--only", choices=PARTS, help="only this part")
    parser.add_argument("--fractions", type=float, nargs=2, action="append", help="try these instead, for both")
    arguments = parser.parse_args()
    parts = [arguments.only] if arguments.only else [*PARTS]
    composer = VideoComposer.load(arguments.checkpoint)
    clips = scenes(arguments.clips, composer)
    textured = scenes(arguments.clips, composer, ("checks", "blobs")) if "camera" in parts else clips
    arms = DRAG_ARMS
    if arguments.fractions:
        arms = {f"both, {a:g} and {b:g}": (True, (a, b)) for a, b in arguments.fractions}
    if {"object", "camera"} & {*parts}:
        speeds = [f"median at {speed:g}" for speed in SPEEDS]
        print("| moves | by | slope |", " | ".join(speeds), "| rest | sideways | error | lost |")
        print("| --- " * 10 + "|")
    for kind in [part for part in parts if part in ("object", "camera")]:
        for line in dragged(composer, textured if kind == "camera" else clips, kind, arms, arguments.steps):
            print(line, flush=True)
    if {"keyframes", "extension"} & {*parts}:
        print("\n| kept by | error of kept frames | of their neighbours | of all others | jump |")
        print("| --- " * 5 + "|")
    if "keyframes" in parts:
        for line in kept(composer, clips, (0, -1), KEY_ARMS, arguments.steps):
            print(line, flush=True)
    if "extension" in parts:
        for count in KEEPS:
            arms = {f"{name}, the first {count}": arm for name, arm in EXTENSION_ARMS.items()}
            for line in kept(composer, clips, range(count), arms, arguments.steps):
                print(line, flush=True)


if __name__ == "__main__":
    main()
