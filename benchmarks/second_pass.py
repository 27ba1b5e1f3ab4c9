"""What a second pass at twice the size does to a video: ./vc bench second_pass [CHECKPOINT]

Scenes that no training has used are composed at the checkpoint's size from their text, motion and first frame, enlarged
twice, and denoised again with conditions of the larger size, in tiles or as entire frames. Means over all scenes:

- error: root mean square difference of RGB to the scene, which is drawn at that size, in percent
- sharpness: the mean difference of neighbouring pixels, relative to the scene's
- overlap: of the object with the scene's, intersection over union, in percent
- way: the fraction of the object's displacement, median
- seams: the mean difference of neighbouring pixels at the borders of tiles, relative to all others, down and across.
  Scenes and enlarged videos have no tiles: theirs are what the contents give at these places.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from training.data.synthetic.captions import captions
from training.data.synthetic.render import render
from training.data.synthetic.scenes import Scenes
from training.evaluate.examples import held_out_scenes
from training.evaluate.measures import displacement_fraction, overlap, pixel_error
from training.evaluate.objects import SIDE, find_objects
from vc_core import Condition, Sampling, VideoComposer, compose
from vc_core.checkpoint.reading import BUNDLED
from vc_core.commands.second_pass import enlarged, second_pass
from vc_core.conditions import drawing_size
from vc_core.config import Config
from vc_core.diffusion.tiles import Tiles
from vc_core.extract.sources import Source, extract
from vc_core.video import FramePlan, resize_crop, write_contact_sheet

STEPS = 12
DENOISE = (0.2, 0.4, 0.6)


def drawn(scene: Scenes, size: tuple[int, int], frames: int) -> Tensor:
    """Draw a scene `(1, 3, F, *size)`: its middle, if the size is not square."""
    return resize_crop(render(scene, max(size), frames, what=("video",)).video, size)


def conditions(scene: Scenes, size: tuple[int, int], config: Config) -> list[Condition]:
    """Extract motion and the first frame of a scene for a video of this size."""
    plan = FramePlan(0.0, Fraction(config.rate).limit_denominator(1001), config.frames)
    filmed = drawn(scene, tuple(side * 256 // max(size) for side in size), config.frames)  # for every size the same
    large = drawn(scene, drawing_size("single_image", size), config.frames)
    clips = {"motion": filmed, "single_image": large[:, :, :1]}
    return [Condition(name, extract(name, Source(clip, plan, size, config.extraction))) for name, clip in clips.items()]


def passes(config: Config) -> Iterator[tuple[str, Sampling]]:
    """Yield the second passes that are compared."""
    first = Sampling(steps=STEPS).filled(config)
    for denoise in DENOISE:
        yield f"denoise {denoise}, tiles", second_pass(first, denoise, config)
    usual, side = second_pass(first, 0.4, config), min(config.height, config.width)
    for what, tiles in (
        ("tiles that share a quarter", Tiles.trained(config, side // 32 * 8)),
        ("tiles that share nothing", Tiles.trained(config, 0)),
        ("entire frames", None),
    ):
        yield f"denoise 0.4, {what}", replace(usual, tiles=tiles)


def changes(video: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean differences of neighbouring rows `(H - 1,)`, and of neighbouring columns `(W - 1,)`."""
    return tuple(video.diff(dim=axis).abs().movedim(axis, 0).flatten(1).mean(1) for axis in (-2, -1))


def seams(change: tuple[Tensor, Tensor], tiles: Tiles) -> list[float]:
    """Return the mean difference at the borders of tiles, relative to all others, down and across; NaN without any."""
    height, width = (len(along) + 1 for along in change)
    parts = tiles.parts(height // 8, width // 8)
    ratios = []
    for axis, (along, side) in enumerate(zip(change, (height, width), strict=True)):
        borders = {8 * end for part in parts for end in (part[axis].start, part[axis].stop)} - {0, side}
        at_border = torch.tensor([i + 1 in borders for i in range(side - 1)])
        ratios.append(float(along[at_border].mean() / along[~at_border].mean()))
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=BUNDLED, help="default: the bundled one")
    parser.add_argument("--clips", type=int, default=6, help="number of scenes (default: 6)")
    parser.add_argument("--wide", action="store_true", help="videos twice as wide as high")
    parser.add_argument("--sheet", type=Path, help="also write a contact sheet of the first scene to this .png")
    arguments = parser.parse_args()
    composer = VideoComposer.load(arguments.checkpoint)
    config = composer.config
    side = min(config.height, config.width)
    small = (side, 2 * side) if arguments.wide else (side, side)
    large = tuple(2 * length for length in small)
    methods = dict(passes(config))
    figures: dict[str, list[list[float]]] = {}
    total: dict[str, list[Tensor]] = {}
    scenes, seconds = held_out_scenes(arguments.clips), dict.fromkeys(methods, 0.0)
    for number in range(arguments.clips):
        scene = scenes[number]
        (text,) = captions(scene, motion=1.0, background=1.0)
        truth = drawn(scene, large, config.frames)
        mask = render(scene, SIDE, config.frames, what=("object_mask",)).object_mask[:, 0] > 0.5
        first = compose(
            composer, text, conditions=conditions(scene, small, config), sampling=Sampling(steps=STEPS), size=small,
            seed=number,
        )  # fmt: skip
        start, again = enlarged(first, large), conditions(scene, large, config)
        videos = {"the scene": truth, "enlarged": start}
        for name, sampling in methods.items():
            begin = time.perf_counter()
            videos[name] = compose(
                composer, text, conditions=again, init=start, size=large, sampling=sampling, seed=number
            )
            seconds[name] += time.perf_counter() - begin
        for name, video in videos.items():
            change = changes(video)
            sharpness = sum(along.mean() for along in change) / sum(along.mean() for along in changes(truth))
            row = [float(pixel_error(video, truth)), float(sharpness), math.nan, math.nan]
            if not arguments.wide:
                objects = find_objects(video).mask
                row[2:] = [float(overlap(objects, mask)), float(displacement_fraction(objects, mask))]
            figures.setdefault(name, []).append(row)
            total[name] = [a + b for a, b in zip(total.get(name, (0, 0)), change, strict=True)]
        if number == 0 and arguments.sheet:
            write_contact_sheet(arguments.sheet, list(videos.items()), columns=5, title=text)
    print("| | error | sharpness | overlap | way | seams | seconds |", "| --- " * 7 + "|", sep="\n")
    for name, rows in figures.items():
        error, sharpness, shared, _ = torch.tensor(rows).mean(0).tolist()
        followed = torch.tensor(rows)[:, 3].nanmedian()
        down, across = seams(total[name], methods.get(name, Sampling()).tiles or Tiles.trained(config))
        objects = "| |" if arguments.wide else f"| {shared:.0%} | {followed:.2f} |"
        cells = f"{error:.1%} | {sharpness:.2f} {objects} {down:.2f}, {across:.2f}"
        print(f"| {name} | {cells} | {seconds.get(name, 0) / len(rows):.0f} |")


if __name__ == "__main__":
    main()
