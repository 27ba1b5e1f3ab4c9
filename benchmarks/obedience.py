"""How far an object moves, compared with its motion condition, at several speeds: ./vc bench obedience [CHECKPOINT]

A clip of a textured disc is encoded as H.264, and its motion extracted from the file. Two videos are composed from the
first frame and a line of text: one with the motion, one with the motion reversed. The displacement is 1 if it equals
the condition's, 0 without motion, -1 in the opposite direction. Medians over four directions and the seeds, with the
default settings.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from vc_core.checkpoint.reading import BUNDLED
from vc_core.composer import VideoComposer
from vc_core.demo import Trial, motions, try_conditions, write_source
from vc_core.diffusion.samplers import Sampling

SPEEDS = ((0.4, 16), (0.8, 16), (1.2, 16), (1.6, 16), (2.2, 10), (3.0, 8))
"""Pixels (of 64) per frame, and the number of frames, in which the disc stays inside the frame."""
DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1))

HEADER = ("speed, pixels (of 64) per frame", "frames", "with the motion", "reversed", "worst", "sideways error", "lost")


def trials(
    composer: VideoComposer, speed: float, frames: int, seeds: int, sampling: Sampling | None = None
) -> Iterator[Trial]:
    """Yield videos with the motion and its reverse, for each direction and seed."""
    with TemporaryDirectory() as folder:
        for (x, y), seed in itertools.product(DIRECTIONS, range(seeds)):
            source = write_source(composer, Path(folder) / "clip.mp4", (x * speed / 64, y * speed / 64), frames)
            yield try_conditions(composer, source, motions(source), seed, sampling=sampling)


def measure(composer: VideoComposer, speed: float, frames: int, seeds: int) -> np.ndarray:
    """Measure N videos with the motion and N with its reverse; return `(2, N, 2)`.

    The last axis is the displacement along the commanded direction, and the error sideways, both as fractions of the
    commanded displacement; NaN if the disc is lost.
    """
    rows = []
    for trial in trials(composer, speed, frames, seeds):
        for name, commanded in trial.expected.items():
            moved, target = np.array(trial.moved[name]), np.array(commanded)
            along = moved @ target / (target @ target)
            rows.append((along, np.linalg.norm(moved - along * target) / np.linalg.norm(target)))
    return np.array(rows).reshape(-1, 2, 2).swapaxes(0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=BUNDLED, help="default: the bundled one")
    parser.add_argument("--seeds", type=int, default=2, help="number of seeds per direction (default: 2)")
    arguments = parser.parse_args()
    composer = VideoComposer.load(arguments.checkpoint)
    print(f"| {' | '.join(HEADER)} |", "| --- " * len(HEADER) + "|", sep="\n")
    for speed, frames in SPEEDS:
        results = measure(composer, speed, frames, arguments.seeds)
        along, across = results[..., 0], results[..., 1]
        figures = (*np.nanmedian(along, axis=1), np.nanmin(along), np.nanmedian(across))
        cells = [str(speed), str(frames), *(f"{figure:.2f}" for figure in figures), f"{np.isnan(along).mean():.0%}"]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
