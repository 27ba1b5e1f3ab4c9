"""What an evaluation leaves: a table in Markdown, everything in JSON, and contact sheets to look at."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from training.evaluate.evaluation import Evaluated, Settings, as_plain
from training.evaluate.measures import MEASURES, Measure
from training.evaluate.objects import NOTHING, as_seen, find_objects
from training.evaluate.statistics import Estimate
from training.evaluate.trials import ARMS, arms_of
from vc_core.extract import flow_picture
from vc_core.video import resize_crop, write_contact_sheet

JSON, TABLE = "evaluation.json", "table.md"
SHOWN = 4
"""Scenes on a contact sheet."""


def write_report(folder: Path, settings: Settings, results: Sequence[Evaluated]) -> None:
    """Writes the table, the JSON and one contact sheet for each trial of each checkpoint into a folder."""
    (folder / TABLE).write_text(as_table(settings, results), encoding="utf-8")
    (folder / JSON).write_text(json.dumps(as_mapping(settings, results), indent=1) + "\n", encoding="utf-8")
    for result in results:
        trials = dict.fromkeys(MEASURES[name].trial for name in result.rows)
        for trial in trials:
            before = f"{result.name}-" if len(results) > 1 else ""
            write_contact_sheet(
                folder / f"{before}{trial}.png",
                sheet_rows(result, trial, settings.sampling.seeds),
                title=f"{result.name}: {trial} given, of another scene, and absent (first seed)",
                cell=96,
            )


# --- The table ------------------------------------------------------------------------------------------------------


def as_table(settings: Settings, results: Sequence[Evaluated]) -> str:
    """The table of the measures, one row for each and each checkpoint, with what one has to know to read it."""
    several = len(results) > 1
    header = ["condition", "measure", *(["checkpoint"] if several else []), "better", *ARMS, "source", "over shuffled"]
    header += ["over the first"] if several else []
    lines = [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    for row in settings.measures():
        for result in results:
            if row.name in result.rows:
                lines.append(f"| {' | '.join(_cells(row, result, several))} |")
    return "\n".join([*_intro(settings, results), "", *lines, "", *_notes(results)]) + "\n"


def _cells(row: Measure, result: Evaluated, several: bool) -> list[str]:
    made = result.rows[row.name]
    cells = [row.trial.replace("_", " "), row.label, *([result.name] if several else [])]
    cells.append({"source": "as the source"}.get(row.better, row.better))
    cells += [_figure(made.estimates[arm], row, lost=True) for arm in ARMS]
    cells += [_figure(made.estimates["source"], row, interval=False)]
    cells += [_figure(made.gains["shuffled"], row, sign=True)]
    if several:
        cells += [_figure(result.beside[row.name], row, sign=True) if row.name in result.beside else ""]
    return cells


def _figure(estimate: Estimate, row: Measure, interval: bool = True, lost: bool = False, sign: bool = False) -> str:
    """For example `0.78 [0.70, 0.85]`, and how many figures are missing where there are any."""
    if estimate.mean is None:
        return "none"
    factor, unit = row.unit
    form = ("+" if sign else "") + (".1f" if factor == 100 else ".3f")
    text = f"{factor * estimate.mean:{form}}{unit and f' {unit}'}"
    if interval and estimate.low is not None:
        text += f" [{factor * estimate.low:{form}}, {factor * estimate.high:{form}}]"
    return text + (f" ({estimate.missing:.0%} not found)" if lost and _loses(row) and estimate.missing else "")


def _loses(row: Measure) -> bool:
    """Whether missing figures are lost objects, not scenes of another pace."""
    return row.name in ("path", "displacement", "way")


def _intro(settings: Settings, results: Sequence[Evaluated]) -> list[str]:
    sampling = settings.sampling
    lines = [
        f"{settings.clips} held-out scenes, {sampling.seeds} seed{'s' if sampling.seeds > 1 else ''} each, "
        f"{sampling.steps} steps of {sampling.sampler}. Means with 95 % confidence intervals, by a bootstrap over the "
        "scenes.",
        "",
        "*Given* is with the scene's own condition, *shuffled* with another scene's, *absent* without; all else is the "
        "same, the noise included. *Source* is the scene itself through the checkpoint's autoencoder: what a perfect "
        "network would reach. *Over shuffled* is given less shuffled, paired by scene and seed.",
        "",
    ]
    for result in results:
        about = result.about
        lines.append(
            f"- {result.name}: {about['name']}, {about['width']}x{about['height']}, {about['frames']} frames, guidance "
            f"{about['guidance']:g}; CLIP: {about['towers']}; sketches: {about['sketches']}; SHA-256 "
            f"{about['sha256'][:16]}"
        )
    return lines


def _notes(results: Sequence[Evaluated]) -> list[str]:
    lines = []
    for result in results:
        before = f"{result.name}: " if len(results) > 1 else ""
        told, note = result.fvd["distances"].items(), result.fvd["note"]
        figures = ", ".join(f"{arm} {value:.1f}" for arm, value in told)
        lines.append(f"- {before}FVD of text alone: {f'{figures} ({note}).' if figures else note}")
        lines += [f"- {before}{note}" for note in result.notes]
    return lines


# --- JSON -----------------------------------------------------------------------------------------------------------


def as_mapping(settings: Settings, results: Sequence[Evaluated]) -> dict[str, Any]:
    """Everything, with the figures of every video: (scenes, seeds) in each arm, null where there is none."""
    return {
        "settings": as_plain(settings),
        "scenes": results[0].clips.texts,
        "measures": {
            row.name: {"condition": row.trial, "label": row.label, "better": row.better} for row in settings.measures()
        },
        "checkpoints": [
            result.about
            | {"notes": result.notes, "fvd": result.fvd, "results": {k: _row(result, k) for k in result.rows}}
            for result in results
        ],
    }


def _row(result: Evaluated, name: str) -> dict[str, Any]:
    row = result.rows[name]
    return {arm: asdict(estimate) | {"values": _nulls(row.values[arm])} for arm, estimate in row.estimates.items()} | {
        **{f"given less {arm}": asdict(gain) for arm, gain in row.gains.items()},
        **({"given less the first's": asdict(result.beside[name])} if name in result.beside else {}),
    }


def _nulls(values: np.ndarray) -> list[list[float | None]]:
    return [[None if np.isnan(value) else round(float(value), 6) for value in line] for line in values]


# --- Contact sheets -------------------------------------------------------------------------------------------------


def sheet_rows(result: Evaluated, trial: str, seeds: int) -> list[tuple[str, Tensor]]:
    """Strips of the first scenes: the source, the condition, what was made of it in each arm, the object found."""
    rows, clips = [], result.clips
    for scene in range(min(SHOWN, len(clips))):
        rows.append((f"{scene + 1}: source" if trial != "text" else clips.texts[scene], clips.truth.video[scene]))
        if trial != "text":
            rows.append((f"{trial} given", _picture(result, trial, scene)))
        for arm, wiring in arms_of(trial).items():
            video = result.videos[wiring][scene * seeds].float() / 255
            rows.append((arm, video))
            if arm == "given":
                rows.append(("  object found", _found(video)))
    return rows


def _picture(result: Evaluated, trial: str, scene: int) -> Tensor:
    """What was given of a scene, as a picture (3 or 1, F, H, W) in [0, 1]."""
    clips = result.clips
    if trial == "style":
        return clips.truth.style[scene][:, None]
    condition = clips.conditions[trial][scene]
    if trial == "motion":
        return flow_picture(condition[None])[0]
    if trial == "depth":
        return condition / condition.max()
    return condition[:3] * 0.5 + 0.5 if trial == "mask" else condition


def _found(video: Tensor) -> Tensor:
    """A video (3, F, H, W) with all but its object darkened."""
    found, seen = find_objects(video[None]), as_seen(video[None])[0]
    mask = found.mask[0] if found.color[0] != NOTHING else found.mask[0] & False
    return resize_crop((seen * (0.2 + 0.8 * mask))[None], tuple(video.shape[-2:]), "nearest", antialias=False)[0]
