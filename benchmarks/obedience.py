"""How far things move of how far the motion says, over speeds: ./vc bench obedience [CHECKPOINT]

A textured disc is filmed, encoded as H.264, and its motion extracted from the file; two videos are composed from it
with the first frame and one line of text, one with the motion, one with the motion reversed. 1 is as far as commanded,
0 is no motion, -1 the opposite way. Medians over four directions and the seeds, at the default settings.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from vc_core.checkpoint.reading import BUNDLED
from vc_core.composer import VideoComposer
from vc_core.demo import try_motion

SPEEDS = ((0.4, 16), (0.8, 16), (1.2, 16), (1.6, 16), (2.2, 10), (3.0, 8))
"""Pixels of 64 a frame, and frames: as many as the disc stays within the picture."""
DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1))

HEADER = ("speed, pixels of 64 a frame", "frames", "with the motion", "reversed", "worst", "sideways error", "lost")


def measure(composer: VideoComposer, speed: float, frames: int, seeds: int, folder: Path) -> np.ndarray:
    """(share of the commanded way, error sideways as a share of it), of N videos with and N against it: (2, N, 2).

    NaN where the disc is lost.
    """
    found = []
    for (x, y), seed in itertools.product(DIRECTIONS, range(seeds)):
        trial = try_motion(composer, folder / "clip.mp4", (x * speed / 64, y * speed / 64), frames, seed)
        for name, commanded in trial.commanded.items():
            moved, way = np.array(trial.moved[name]), np.array(commanded)
            along = moved @ way / (way @ way)
            found.append((along, np.linalg.norm(moved - along * way) / np.linalg.norm(way)))
    return np.array(found).reshape(-1, 2, 2).swapaxes(0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=BUNDLED)
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    composer = VideoComposer.load(arguments.checkpoint)
    print(f"| {' | '.join(HEADER)} |", "| --- " * len(HEADER) + "|", sep="\n")
    with TemporaryDirectory() as folder:
        for speed, frames in SPEEDS:
            found = measure(composer, speed, frames, arguments.seeds, Path(folder))
            along, across = found[..., 0], found[..., 1]
            figures = (*np.nanmedian(along, axis=1), np.nanmin(along), np.nanmedian(across))
            cells = [str(speed), str(frames), *(f"{figure:.2f}" for figure in figures), f"{np.isnan(along).mean():.0%}"]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
