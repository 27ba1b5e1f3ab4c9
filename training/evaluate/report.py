"""Writes an evaluation: a table in Markdown, everything in JSON, and contact sheets."""

from __future__ import annotations

import json
import platform
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor

from training.evaluate.clip_list import NAME, write_clip_list
from training.evaluate.evaluation import EvaluationSettings, Result, Row
from training.evaluate.examples import HELD_OUT
from training.evaluate.measures import SLOWEST
from training.evaluate.objects import at_side, find_objects
from training.evaluate.statistics import Estimate
from training.evaluate.summary import FEWEST, TOO_FEW, headline, kept_together, verdicts
from training.evaluate.trials import ARMS, TOGETHER, TRIALS, arms_of
from vc_core.checkpoint.files import sha256
from vc_core.extract.pictures import picture_of
from vc_core.video import resize_crop, write_contact_sheet

JSON, TABLE = "evaluation.json", "table.md"
SHOWN = 4
"""Clips on a contact sheet."""
NAMED = 5
"""Number of unreadable clips that the table names; the JSON names all."""


def write_report(folder: Path, settings: EvaluationSettings, results: Sequence[Result]) -> None:
    """Write the table, the JSON, the list of clips, and one contact sheet per trial and checkpoint into a folder."""
    (folder / TABLE).write_text(as_table(settings, results), encoding="utf-8")
    plain = json.dumps(as_mapping(settings, results), indent=1, default=str)  # paths
    (folder / JSON).write_text(plain + "\n", encoding="utf-8")
    listed = settings.clips_of_list or settings
    write_clip_list(folder / NAME, results[0].clips.sources, listed.rate, listed.nominal_height)
    for result in results:
        arms = f"given, from another {settings.noun}, and absent (first seed)"
        titles = {row.measure.trial: arms for row in result.rows.values()}
        if result.together is not None:
            titles[TOGETHER] = "all conditions given at once (first seed)"
        for trial, title in titles.items():
            before = f"{result.name}-" if len(results) > 1 else ""
            write_contact_sheet(
                folder / f"{before}{trial}.png",
                sheet_rows(result, trial, settings.sampling.seeds),
                title=f"{result.name}: {trial.replace('_', ' ')}: {title}",
                cell=96,
            )


# --- The table ------------------------------------------------------------------------------------------------------


def as_table(settings: EvaluationSettings, results: Sequence[Result]) -> str:
    """Return the table, with one line per measure and checkpoint, and an explanation."""
    head, *rows = table_cells(settings, results)
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
    text = [*intro(settings, results), "", *lines, "", *in_words(results), *notes_on(settings, results)]
    if scores := vbench_cells(results):
        text += ["", "VBench:", ""]
        text += [f"| {' | '.join(cells)} |" for cells in (scores[0], ["---"] * len(scores[0]), *scores[1:])]
    return "\n".join(text) + "\n"


def table_cells(settings: EvaluationSettings, results: Sequence[Result]) -> list[list[str]]:
    """Return the head of the table and its rows, one per measure and checkpoint."""
    columns = _columns(results)
    table = [[*columns]]
    for measure in settings.measures():
        rows = [(result, result.rows[measure.name]) for result in results if measure.name in result.rows]
        table += [[cell(result, row) for cell in columns.values()] for result, row in rows]
    return table


def vbench_cells(results: Sequence[Result]) -> list[list[str]]:
    """Return the head and rows of the table of VBench's figures; empty if there are none."""
    rows = [
        [dimension.replace("_", " "), scored.kind, result.name, _score(figure), _score(gain, "+")]
        for result in results
        for scored in result.vbench
        for dimension, figure in scored.figures.items()
        for gain in [scored.over_first.get(dimension)]
    ]
    width = 5 if len(results) > 1 else 4
    table = [["dimension", "composed from", "checkpoint", "score", "over the first"], *rows]
    return [cells[:width] for cells in table] if rows else []


def _score(estimate: Estimate | None, sign: str = "") -> str:
    return "" if estimate is None else shown_figure(estimate, 100, f"{sign}.1f", " %")


def _columns(results: Sequence[Result]) -> dict[str, Callable[[Result, Row], str]]:
    """Return for each column a function that writes its cell."""
    several = len(results) > 1
    columns = {
        "condition": lambda result, row: row.measure.trial.replace("_", " "),
        "measure": lambda result, row: row.measure.label,
        "checkpoint": (lambda result, row: result.name) if several else None,
        "better": lambda result, row: {"source": "as the source"}.get(row.measure.better, row.measure.better),
        **{arm: lambda result, row, arm=arm: figure_text(row, row.estimates[arm], lost=True) for arm in ARMS},
        "source": lambda result, row: figure_text(row, row.estimates["source"], interval=False),
        "over shuffled": lambda result, row: figure_text(row, row.gains["shuffled"], "+"),
        "together": _together if any(result.together for result in results) else None,
        "over the first": (lambda result, row: figure_text(row, result.over_first.get(row.measure.name), "+"))
        if several
        else None,
    }
    return {name: cell for name, cell in columns.items() if cell is not None}


def _together(result: Result, row: Row) -> str:
    """Return for example `0.74 (95 % of its own)`."""
    fraction, text = kept_together(row), figure_text(row, row.estimates.get(TOGETHER), interval=False)
    return text + ("" if fraction is None else f" ({fraction:.0%} of its own)")


def figure_text(row: Row, estimate: Estimate | None, sign: str = "", interval: bool = True, lost: bool = False) -> str:
    """Return for example `0.78 [0.70, 0.85]`, and how many objects were not found."""
    if estimate is None:
        return ""
    scale = (100, f"{sign}.1f", " %") if row.measure.percent else (1, f"{sign}.3f", "")
    text, lost = shown_figure(estimate, *scale, interval), lost and row.measure.loses and estimate.mean is not None
    return text + (f" ({estimate.missing:.0%} not found)" if lost and estimate.missing else "")


def shown_figure(estimate: Estimate, factor: float, form: str, unit: str, interval: bool = True) -> str:
    """Return a figure that exists, with its interval if it has one."""
    if estimate.mean is None:
        return "none"
    text = f"{factor * estimate.mean:{form}}{unit}"
    if interval and estimate.low is not None:
        text += f" [{factor * estimate.low:{form}}, {factor * estimate.high:{form}}]"
    return text


def intro(settings: EvaluationSettings, results: Sequence[Result]) -> list[str]:
    how, noun = settings.sampling, settings.noun
    counts = [len(result.clips) for result in results]
    count = " to ".join(map(str, sorted({min(counts), max(counts)})))
    sampling = " or ".join(dict.fromkeys(result.about["sampling"] for result in results))
    if settings.data is None:
        what, error = "held-out scenes", "the error of the object's motion"
    else:
        choice = "evenly spread" if settings.clip_list is None else f"those of {settings.clip_list.name}"
        what = f"clips from {settings.data.resolve().name}, {choice}"
        error = "measured against the clip's motion, where the condition defines motion"
    first = (
        f"{count} {what}, {how.seeds} seed{'s' if how.seeds > 1 else ''} each, {sampling}. "
        f"Means with 95 % confidence intervals, from a bootstrap over the {noun}s."
    )
    reading = (
        f"*Given*: with the {noun}'s own condition. *Shuffled*: with another {noun}'s. *Absent*: without it. "
        f"Everything else is the same, including the noise. *Source*: the {noun} itself, encoded and decoded by the "
        f"checkpoint's autoencoder: a perfect network would reach these figures. "
        f"*Over shuffled*: given minus shuffled, paired by {noun} and seed. *Together*: with all conditions at once, "
        f"in percent of the measure's own trial; above 100 % is better. The end-point error is {error}."
    )
    if any("motion_control" in result.rows for result in results):
        reading += (
            " The motion control error compares the motion vectors of a codec in the video and in the source, over all "
            "pixels of all frames but the first."
        )
    if settings.data is None:
        reading += (
            " Lines of measured over target motion go through the origin and include all motions of at least "
            f"{SLOWEST * 64:g} pixels of 64 per frame: the objects' displacement over the clip, and the camera's where "
            "the background shows it, x and y."
        )
    if len(results) > 1:
        reading += (
            " *Over the first*: given minus the first checkpoint's given, on the same clips with the same noise, "
            "paired. CLIP figures use the same towers for all checkpoints."
        )
    lines = [first, "", reading, ""]
    for result in results:
        about = result.about
        sketches = f" sketches: {about['sketches']};" if about["sketches"] else ""
        lines.append(
            f"- {result.name}: {about['name']}, {about['width']}x{about['height']}, {about['frames']} frames, guidance "
            f"{about['guidance']:g}; CLIP: {about['towers']};{sketches} SHA-256 {about['sha256'][:16]}"
        )
    return lines


def in_words(results: Sequence[Result]) -> list[str]:
    """Return lists of measures that are better or worse than the first checkpoint's, and the headline figures."""
    lines = []
    for result in results[1:]:
        sorted_names = verdicts(result, results[0])
        few = sorted_names.pop(TOO_FEW)
        words = [f"{word}: {', '.join(names) or 'none'}" for word, names in sorted_names.items()]
        words = words if any(sorted_names.values()) or not few else []
        if few:
            words.append(
                f"no verdict with fewer than {FEWEST} clips, because their intervals are too narrow: {', '.join(few)}"
            )
        lines.append(f"- {result.name} compared with {results[0].name}: {'; '.join(words)}.")
    for result in results:
        if figures := headline(result):
            text = ", ".join(f"{name} {figure:.3f}" for name, figure in figures.items())
            lines.append(f"- {result.name}, headline figures: {text}.")
    return lines


def notes_on(settings: EvaluationSettings, results: Sequence[Result]) -> list[str]:
    """Return notes on what was not measured, and why."""
    lines, measures = [], settings.measures()
    if omitted := [row.name for row in settings.requested() if row not in measures]:
        lines.append(f"- Not measured, because these require synthetic scenes: {', '.join(omitted)}.")
    fvd = [f"FVD with only text: {_fvd_text(result.fvd)}" for result in results]
    if len(set(fvd)) == 1:  # usually that it was not measured
        lines.append(f"- {fvd[0]}")
    for result, text in zip(results, fvd, strict=True):
        before = f"{result.name}: " if len(results) > 1 else ""
        if len(set(fvd)) > 1:
            lines.append(f"- {before}{text}")
        lines += [f"- {before}VBench, {each.kind}: {each.note}" for each in result.vbench if each.note]
        if skipped := result.clips.skipped:
            more = f" {len(skipped) - NAMED} more are listed in {JSON}." if len(skipped) > NAMED else ""
            reasons = " ".join(skipped[:NAMED])
            count = f"{len(skipped)} of {len(result.clips) + len(skipped)} clips"
            lines.append(f"- {before}Skipped {count} that cannot be read. {reasons}{more}")
        lines += [f"- {before}{note}" for note in result.notes]
    return lines


def _fvd_text(fvd: dict[str, Any]) -> str:
    figures = ", ".join(
        f"{arm} {distance:.1f} [{low:.1f}, {high:.1f}]"
        for (arm, distance), (low, high) in zip(
            fvd["distances"].items(), fvd.get("intervals", {}).values(), strict=True
        )
    )
    return f"{figures} ({fvd['note']})." if figures else fvd["note"]


# --- JSON -----------------------------------------------------------------------------------------------------------


def as_mapping(settings: EvaluationSettings, results: Sequence[Result]) -> dict[str, Any]:
    """Return everything, with the figures of every video: (clips, seeds) for each arm, null if there is none; for lines
    (clips, seeds, points, 2), target and measured."""
    plain = asdict(settings) | {"measures": [row.name for row in settings.measures()]}
    del plain["out"]  # figures do not depend on the output folder
    measuring = (settings.clip, settings.fvd, settings.raft, settings.tracks, settings.clip_list)
    if (listed := settings.clips_of_list) is not None:
        plain["clips"] = len(listed.clips)
    if settings.data is None:
        plain["held_out_seed"] = HELD_OUT
    return {
        "settings": plain,
        "files": {str(file): sha256(file) for file in measuring if file is not None},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "av": av.__version__},
        "measures": {
            row.name: {"condition": row.trial, "label": row.label, "better": row.better} for row in settings.measures()
        },
        "checkpoints": [
            result.about
            | {
                "clips": dict(zip(result.clips.keys, result.clips.texts, strict=True)),
                "skipped": result.clips.skipped,
                "notes": result.notes,
                "fvd": result.fvd,
                "vbench": [
                    asdict(each) | {"values": {name: _nulls(values) for name, values in each.values.items()}}
                    for each in result.vbench
                ],
                "headline": headline(result),
                "results": {name: _plain(row, result.over_first.get(name)) for name, row in result.rows.items()},
            }
            | ({"beside the first": verdicts(result, results[0])} if result.over_first else {})
            for result in results
        ],
    }


def _plain(row: Row, over_first: Estimate | None) -> dict[str, Any]:
    plain = {arm: asdict(estimate) | {"values": _nulls(row.values[arm])} for arm, estimate in row.estimates.items()}
    plain |= {f"given less {arm}": asdict(gain) for arm, gain in row.gains.items()}
    return plain | ({} if over_first is None else {"given less the first's": asdict(over_first)})


def _nulls(values: np.ndarray) -> list[Any] | float | None:
    if values.ndim:
        return [_nulls(part) for part in values]
    return None if np.isnan(values) else round(float(values), 6)


# --- Contact sheets -------------------------------------------------------------------------------------------------


def sheet_rows(result: Result, trial: str, seeds: int) -> list[tuple[str, Tensor]]:
    """Return strips of the first clips: source, condition, each arm's video, and for scenes the object found in it."""
    rows, clips = [], result.clips
    arms = {"given": result.together} if trial == TOGETHER else arms_of(trial)
    for number in range(min(SHOWN, len(clips))):
        if trial in ("text", TOGETHER):
            caption = textwrap.shorten(clips.texts[number], 48, placeholder=" ...")
            rows.append((caption, clips.truth.video[number]))
        else:
            condition = TRIALS[trial].condition
            rows.append((f"{number + 1}: source", clips.truth.video[number]))
            rows.append((f"{condition} given", condition_image(result, condition, number)))
        for arm, wiring in arms.items():
            video = result.videos[wiring][number * seeds].float() / 255
            rows.append((arm, video))
            if arm == "given" and clips.truth.mask is not None:
                rows.append(("  object found", _highlighted(video)))
    return rows


def condition_image(result: Result, condition: str, number: int) -> Tensor:
    """Return a clip's condition as an image (3 or 1, F, H, W) in [0, 1]."""
    clips = result.clips
    if condition == "style":
        return clips.truth.style[number][:, None]
    return picture_of(condition, clips.conditions[condition][number][None])[0]


def _highlighted(video: Tensor) -> Tensor:
    """Darken everything except the object in a video (3, F, H, W)."""
    mask, small = find_objects(video[None]).mask[0], at_side(video[None])[0]
    return resize_crop((small * (0.2 + 0.8 * mask))[None], tuple(video.shape[-2:]), "nearest", antialias=False)[0]
