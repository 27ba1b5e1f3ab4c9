"""How well motion is obeyed, and how much videos flicker, by kind of noise: ./vc bench noise [CHECKPOINT]

Objects: the trials of `./vc bench obedience` in four directions. Camera: pans by 0.3 frame widths or heights in four
directions, with a first frame. Figures are medians over the directions and seeds.

- obeyed: the displacement along the commanded direction, as a fraction of the commanded displacement.
- error: distance between the measured and the commanded displacement, as the same fraction.
- flicker: mean second difference of neighbouring frames, in levels of 255.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from obedience import DIRECTIONS, trials
from torch import Tensor

from training.evaluate.camera import camera_step
from training.evaluate.objects import at_side, find_objects
from vc_core.checkpoint.reading import BUNDLED
from vc_core.composer import VideoComposer
from vc_core.conditions import Condition
from vc_core.demo import TEXT, draw_clip
from vc_core.diffusion.noise import NOISES
from vc_core.diffusion.samplers import Sampling
from vc_core.extract.motion.camera import CameraMove, camera_field, condition_from_field
from vc_core.pipeline import compose

SPEEDS = ((0.3, 16), (0.5, 16), (0.8, 16), (1.6, 16))
"""Pixels (of 64) per frame, and the number of frames."""
PAN = 0.3
HEADER = ("motion", "noise", "obeyed", "error", "flicker")


def flicker(video: Tensor) -> float:
    """Return the mean second difference along the frames of `(1, 3, F, H, W)`."""
    return 255 * (video[:, :, 2:] - 2 * video[:, :, 1:-1] + video[:, :, :-2]).abs().mean().item()


def figures(moved: np.ndarray, target: np.ndarray, video: Tensor) -> tuple[float, float, float]:
    length = np.linalg.norm(target)
    return moved @ target / length**2, np.linalg.norm(moved - target) / length, flicker(video)


def objects(
    composer: VideoComposer, sampling: Sampling, speed: float, frames: int, seeds: int
) -> Iterator[tuple[float, ...]]:
    for trial in trials(composer, speed, frames, seeds, sampling):
        for name, video in trial.videos.items():
            yield figures(np.array(trial.moved[name]), np.array(trial.expected[name]), video)


def camera(composer: VideoComposer, sampling: Sampling, seeds: int) -> Iterator[tuple[float, ...]]:
    config = composer.config
    size, image = (config.height, config.width), draw_clip((0.0, 0.0), size=config.width, frames=1)
    for direction, seed in itertools.product(DIRECTIONS, range(seeds)):
        pan = (PAN * direction[0], PAN * direction[1])
        field = condition_from_field(camera_field(CameraMove(pan), config.frames, size), config.extraction, size)
        conditions = [Condition("motion", field), Condition("single_image", image)]
        video = compose(composer, TEXT, conditions=conditions, seed=seed, sampling=sampling)
        step = camera_step(at_side(video), find_objects(at_side(video)).mask)[0].numpy()
        yield figures(step * (config.frames - 1), -np.array(pan), video)  # the background moves against the camera


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=BUNDLED, help="default: the bundled one")
    parser.add_argument("--seeds", type=int, default=2, help="number of seeds per direction (default: 2)")
    parser.add_argument("--steps", type=int, default=12, help="number of sampling steps (default: 12)")
    arguments = parser.parse_args()
    composer = VideoComposer.load(arguments.checkpoint)
    kinds = {kind: Sampling(noise=kind, steps=arguments.steps) for kind in NOISES if kind != "shuffled"}
    print(f"| {' | '.join(HEADER)} |", "| --- " * len(HEADER) + "|", sep="\n")
    for kind, sampling in kinds.items():
        row("camera", kind, camera(composer, sampling, 2 * arguments.seeds))
    for speed, frames in SPEEDS:
        for kind, sampling in kinds.items():
            row(f"object, {speed} pixels", kind, objects(composer, sampling, speed, frames, arguments.seeds))


def row(motion: str, kind: str, results: Iterator[tuple[float, ...]]) -> None:
    obeyed, error, flickers = np.nanmedian(np.array(list(results)), axis=0)
    print(f"| {motion} | {kind} | {obeyed:.2f} | {error:.2f} | {flickers:.2f} |", flush=True)


if __name__ == "__main__":
    main()
