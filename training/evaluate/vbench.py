"""VBench (arXiv 2311.17982): writes videos and texts as its custom input, and reads its results into the report.

VBench runs in an environment of its own. For each checkpoint and each kind of videos, the folder contains:

    NAME/text/videos/0001-0.mp4      clip 1 with seed 0, composed from text
    NAME/text/prompts.json           {"0001-0.mp4": "a black swan"}, for --prompt_file
    NAME/text/*_eval_results.json    VBench's results, with NAME/text as its --output_path
    NAME/together/...                the same with all conditions
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from training.evaluate.evaluation import Result
from training.evaluate.statistics import Estimate, difference, estimate
from training.evaluate.trials import TOGETHER, Wiring, arms_of
from vc_core.disk import make_folder, writing
from vc_core.errors import UserError, reason
from vc_core.parsing import parse_json, read_text
from vc_core.progress import Progress, reported
from vc_core.video import write_video

VIDEOS, PROMPTS, RESULTS = "videos", "prompts.json", "*_eval_results.json"
DIMENSIONS = (
    "subject_consistency",
    "background_consistency",
    "motion_smoothness",
    "dynamic_degree",
    "aesthetic_quality",
    "imaging_quality",
)
"""The dimensions that VBench documents for custom input."""
SCALES = {"imaging_quality": 0.01}
"""What VBench multiplies the mean of a dimension's videos by."""

Scores = dict[str, dict[str, float]]
"""Scores by dimension and file name of the video."""


@dataclass(frozen=True)
class Scored:
    """VBench's results for the videos of one checkpoint and kind."""

    folder: str
    kind: str  # `text` or `TOGETHER`
    note: str = ""  # why there are no figures
    values: dict[str, np.ndarray] = field(default_factory=dict)  # by dimension, (clips, seeds)
    figures: dict[str, Estimate] = field(default_factory=dict)
    over_first: dict[str, Estimate] = field(default_factory=dict)  # minus the first checkpoint's, paired


def wirings_of(result: Result) -> dict[str, Wiring]:
    """Return the wirings whose videos VBench measures, by kind."""
    wirings = {"text": arms_of("text")["given"], TOGETHER: result.together}
    return {kind: wiring for kind, wiring in wirings.items() if wiring in result.videos}


def check_vbench(folder: Path) -> None:
    """Check that a folder can be used, and that the results in it can be read.

    Raises:
        UserError: it cannot; the message says why.
    """
    make_folder(folder)
    for path in folder.glob(f"*/*/{RESULTS}"):
        read_scores(path)


def read_scores(path: Path) -> Scores:
    """Read a result file of VBench: `{DIMENSION: [MEAN, [{"video_path": ..., "video_results": SCORE}, ...]]}`.

    Raises:
        UserError: the file cannot be read, or has another format.
    """
    try:
        content = parse_json(read_text(path))
        return {
            dimension: {
                re.split(r"[/\\]", video["video_path"])[-1]: SCALES.get(dimension, 1.0) * float(video["video_results"])
                for video in videos
            }
            for dimension, (_, videos) in content.items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as results of VBench ({reason(error)}). Remove it.") from error


def export(folder: Path, results: Sequence[Result], seeds: int, progress: Progress | None = None) -> list[Result]:
    """Write the videos and texts of all checkpoints, and return the results with the scores that VBench has written for
    exactly these videos."""
    scored: list[Result] = []
    for result in results:
        entries = []
        for kind, wiring in wirings_of(result).items():
            own = folder / result.name / kind
            changed = write_custom_input(own, result, wiring, seeds, progress)
            entry = _read_results(own, kind, len(result.clips), seeds, changed)
            first = next((each for each in scored[0].vbench if each.kind == kind), None) if scored else None
            if first is not None and result.clips.keys == scored[0].clips.keys:
                common = [name for name in entry.values if name in first.values]
                gains = {name: difference(entry.values[name], first.values[name]) for name in common}
                entry = replace(entry, over_first=gains)
            entries.append(entry)
        scored.append(replace(result, vbench=entries))
    return scored


def write_custom_input(
    folder: Path, result: Result, wiring: Wiring, seeds: int, progress: Progress | None = None
) -> bool:
    """Write the videos and texts of one kind. Return whether anything changed, so that older results are not valid."""
    videos, changed, prompts = make_folder(folder / VIDEOS), False, {}
    for number, video in enumerate(reported("writing", result.videos[wiring], progress)):
        clip, seed = divmod(number, seeds)
        name = _name(clip, seed)
        prompts[name] = result.clips.texts[clip]
        rate = Fraction(result.clips.sources[clip]["rate"]).limit_denominator(1001)
        changed |= _replace(videos / name, lambda path, video=video, rate=rate: write_video(path, video / 255, rate))
    for path in videos.iterdir():  # of an earlier evaluation of more clips; VBench would measure them too
        if path.name not in prompts and re.fullmatch(r"\d{4,}-\d+\.mp4", path.name):
            path.unlink()
            changed = True
    text = json.dumps(prompts, indent=1, ensure_ascii=False) + "\n"
    return changed | _replace(folder / PROMPTS, lambda path: path.write_text(text, encoding="utf-8"))


def _name(clip: int, seed: int) -> str:
    return f"{clip + 1:04}-{seed}.mp4"


def _replace(path: Path, write: Any) -> bool:
    """Write a file. Return whether its bytes changed."""
    before = path.read_bytes() if path.is_file() else None
    with writing(path):
        write(path)
    return before != path.read_bytes()


def _read_results(folder: Path, kind: str, clips: int, seeds: int, changed: bool) -> Scored:
    files = sorted(folder.glob(RESULTS))  # their names contain the time, so later ones replace earlier ones
    if not files:
        return Scored(str(folder), kind, f"not measured yet. Run VBench in its own environment: {command(folder)}")
    if changed:
        return Scored(str(folder), kind, f"its results are of other videos. Run VBench again: {command(folder)}")
    scores: Scores = {}
    for file in files:
        scores |= read_scores(file)
    names = [[_name(clip, seed) for seed in range(seeds)] for clip in range(clips)]
    values = {
        dimension: np.array([[of.get(name, math.nan) for name in row] for row in names])
        for dimension, of in scores.items()
    }
    return Scored(str(folder), kind, "", values, {name: estimate(each) for name, each in values.items()})


def command(folder: Path) -> str:
    """Return the command that measures the videos of a folder in VBench's environment."""
    paths = {"videos_path": folder / VIDEOS, "prompt_file": folder / PROMPTS, "output_path": folder}
    options = " ".join(f"--{name} {shlex.quote(str(path))}" for name, path in paths.items())
    return f"for d in {' '.join(DIMENSIONS)}; do vbench evaluate --mode=custom_input --dimension $d {options}; done"
