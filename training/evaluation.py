"""How well a checkpoint obeys motion: commanded against measured displacement, over speeds, directions and seeds.

python -m training.evaluation --checkpoint FILE --out runs/evaluation
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path

from vc_core.atomic import written_beside
from vc_core.checkpoint import BUNDLED
from vc_core.composer import VideoComposer
from vc_core.demo import try_motion
from vc_core.video import write_contact_sheet

SPEEDS = ((0.4, 16), (0.8, 16), (1.2, 16), (1.6, 16), (2.2, 10), (3.0, 8))
"""Pixels a frame at 64 pixels, and over how many frames, so that what starts in the middle stays in the picture."""
DIRECTIONS = 4


def motion_control(composer: VideoComposer, folder: Path, seeds: int) -> list[dict[str, float | None]]:
    """One row a speed: the share of the commanded displacement that was made, along it and across, both ways.

    `along` is 1 where the object went exactly as far as it was told, -1 where it went the opposite way; `across`
    is the sideways error in the same unit. `lost` is the share of videos in which no object was found at the end.
    """
    rows = []
    for speed, frames in SPEEDS:
        along: dict[str, list[float]] = {"motion": [], "reversed": []}
        across, strips = [], []
        for turn in range(DIRECTIONS):
            angle = 2 * math.pi * (turn + 0.125) / DIRECTIONS
            velocity = (speed / 64 * math.cos(angle), speed / 64 * math.sin(angle))
            for seed in range(seeds):
                trial = try_motion(composer, folder / "clip.mp4", velocity, frames, seed)
                strips += [(name, video) for name, video in trial.videos.items()] if seed == 0 else []
                for name, (cx, cy) in trial.commanded.items():
                    mx, my = trial.moved[name]
                    length = cx * cx + cy * cy
                    along[name].append((mx * cx + my * cy) / length)
                    across.append(abs(mx * cy - my * cx) / length)
        found = {name: [v for v in values if not math.isnan(v)] for name, values in along.items()}
        every = sum(map(len, along.values()))
        write_contact_sheet(folder / f"speed-{speed}.png", strips, title=f"{speed} pixels a frame")
        row = {"speed": speed, "frames": frames, "videos": every}
        row |= {name: statistics.median(values) if values else math.nan for name, values in found.items()}
        row["worst"] = min((v for values in found.values() for v in values), default=math.nan)
        row["across"] = statistics.median([v for v in across if not math.isnan(v)] or [math.nan])
        row["lost"] = 1 - sum(map(len, found.values())) / every
        rows.append({key: None if math.isnan(value) else round(value, 3) for key, value in row.items()})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=BUNDLED)
    parser.add_argument("--out", type=Path, default=Path("runs/evaluation"))
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = motion_control(VideoComposer.load(arguments.checkpoint), arguments.out, arguments.seeds)
    with written_beside(arguments.out / "motion.json") as temporary:
        temporary.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
