"""What an evaluation leaves: a table in Markdown, everything in JSON, and contact sheets to look at."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from training.evaluate.clips import Clips
from training.evaluate.evaluation import Evaluated, Row, Settings, as_plain
from training.evaluate.measures import MEASURES, SLOWEST, Measure
from training.evaluate.objects import NOTHING, as_seen, find_objects
from training.evaluate.statistics import MEAN, Estimate
from training.evaluate.summary import headline, kept_together, verdicts
from training.evaluate.trials import ARMS, TOGETHER, TRIALS, Wiring, arms_of
from vc_core.extract.pictures import picture_of
from vc_core.video import resize_crop, write_contact_sheet

JSON, TABLE = "evaluation.json", "table.md"
SHOWN = 4
"""Clips on a contact sheet."""
TOLD = 5
"""Clips that could not be read that the table names; the JSON names all."""


def write_report(folder: Path, settings: Settings, results: Sequence[Evaluated]) -> None:
    """Writes the table, the JSON and one contact sheet for each trial of each checkpoint into a folder."""
    (folder / TABLE).write_text(as_table(settings, results), encoding="utf-8")
    (folder / JSON).write_text(json.dumps(as_mapping(settings, results), indent=1) + "\n", encoding="utf-8")
    for result in results:
        titles = {
            MEASURES[name].trial: f"given, of another {settings.noun}, and absent (first seed)" for name in result.rows
        }
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


def as_table(settings: Settings, results: Sequence[Evaluated]) -> str:
    """The table of the measures, one row for each and each checkpoint, with what one has to know to read it."""
    several = len(results) > 1
    header = ["condition", "measure", *(["checkpoint"] if several else []), "better", *ARMS, "source", "over shuffled"]
    header += ["together"] if any(result.together for result in results) else []
    header += ["over the first"] if several else []
    lines = [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    for row in settings.measures():
        for result in results:
            if row.name in result.rows:
                lines.append(f"| {' | '.join(_cells(row, result, several, 'together' in header))} |")
    told = [*_intro(settings, results), "", *lines, "", *_compared(results), *_headlines(results)]
    return "\n".join([*told, *_notes(settings, results)]) + "\n"


def _cells(row: Measure, result: Evaluated, several: bool, together: bool) -> list[str]:
    made = result.rows[row.name]
    cells = [row.trial.replace("_", " "), row.label, *([result.name] if several else [])]
    cells.append({"source": "as the source"}.get(row.better, row.better))
    cells += [_figure(made.estimates[arm], row, lost=True) for arm in ARMS]
    cells += [_figure(made.estimates["source"], row, interval=False)]
    cells += [_figure(made.gains["shuffled"], row, sign=True)]
    cells += [_together(made)] if together else []
    if several:
        cells += [_figure(result.beside[row.name], row, sign=True) if row.name in result.beside else ""]
    return cells


def _together(made: Row) -> str:
    """For example `0.74 (95 % of its own)`."""
    if TOGETHER not in made.estimates:
        return ""
    kept, text = kept_together(made), _figure(made.estimates[TOGETHER], made.measure, interval=False)
    return text + ("" if kept is None else f" ({kept:.0%} of its own)")


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
    return row.name in ("path", "displacement", "way", "sharpness") or row.statistic is not MEAN


def _intro(settings: Settings, results: Sequence[Evaluated]) -> list[str]:
    sampling, noun = settings.sampling, settings.noun
    counts = [len(result.clips) for result in results]
    count = f"{max(counts)}" if len({*counts}) == 1 else f"{min(counts)} to {max(counts)}"
    if settings.data is None:
        what, error = "held-out scenes", "of the object's motion"
    else:
        what = f"clips of {settings.data}, evenly spread over it"
        error = "from the clip's motion, where the condition tells any"
    lines = [
        f"{count} {what}, {sampling.seeds} seed{'s' if sampling.seeds > 1 else ''} each, {sampling.steps} steps of "
        f"{sampling.sampler}. Means with 95 % confidence intervals, by a bootstrap over the {noun}s.",
        "",
        f"*Given* is with the {noun}'s own condition, *shuffled* with another {noun}'s, *absent* without; all else is "
        f"the same, the noise included. *Source* is the {noun} itself through the checkpoint's autoencoder: what a "
        f"perfect network would reach. *Over shuffled* is given less shuffled, paired by {noun} and seed. *Together* "
        "is with all conditions at once, in shares of the measure's own trial: above 100 % is better than there. The "
        f"end-point error is {error}.",
        "",
    ]
    if settings.data is None:
        lines[2] += (
            f" Lines of commanded against seen motion go through the origin and take all motions from {SLOWEST * 64:g} "
            "pixels of 64 a frame: objects' way over the clip, the camera's where the background shows it, x and y."
        )
    if len(results) > 1:
        lines[2] += (
            " *Over the first* is given less the first checkpoint's given, on the same clips with the same noise, "
            "pair by pair; CLIP's figures are those of one pair of towers for all."
        )
    for result in results:
        about = result.about
        sketches = f" sketches: {about['sketches']};" if about["sketches"] else ""
        lines.append(
            f"- {result.name}: {about['name']}, {about['width']}x{about['height']}, {about['frames']} frames, guidance "
            f"{about['guidance']:g}; CLIP: {about['towers']};{sketches} SHA-256 {about['sha256'][:16]}"
        )
    return lines


def _compared(results: Sequence[Evaluated]) -> list[str]:
    """What is better and what is worse than the first checkpoint's, in words."""
    lines = []
    for result in results[1:]:
        words = [f"{word}: {', '.join(names) or 'none'}" for word, names in verdicts(result, results[0]).items()]
        lines.append(f"- {result.name} beside {results[0].name}: {'; '.join(words)}.")
    return lines


def _headlines(results: Sequence[Evaluated]) -> list[str]:
    told = ((result.name, headline(result)) for result in results)
    lines = ((name, ", ".join(f"{of} {figure:.3f}" for of, figure in found.items())) for name, found in told)
    return [f"- {name} in short: {figures}." for name, figures in lines if figures]


def _notes(settings: Settings, results: Sequence[Evaluated]) -> list[str]:
    lines = []
    if left_out := settings.left_out():
        lines.append(f"- Not measured, as it takes synthetic scenes: {', '.join(row.name for row in left_out)}.")
    for result in results:
        before = f"{result.name}: " if len(results) > 1 else ""
        told, note = result.fvd["distances"].items(), result.fvd["note"]
        figures = ", ".join(f"{arm} {value:.1f}" for arm, value in told)
        lines.append(f"- {before}FVD of text alone: {f'{figures} ({note}).' if figures else note}")
        lines += [f"- {before}{note}" for note in [*_skipped(result.clips), *result.notes]]
    return lines


def _skipped(clips: Clips) -> list[str]:
    """How many clips could not be read, and which; nothing where all could."""
    if not (skipped := clips.skipped):
        return []
    more = f"; and {len(skipped) - TOLD} more, which {JSON} names" if len(skipped) > TOLD else ""
    told = "; ".join(reason.rstrip(".") for reason in skipped[:TOLD])
    return [f"Left out, as they cannot be read, {len(skipped)} of {len(clips) + len(skipped)} clips: {told}{more}."]


# --- JSON -----------------------------------------------------------------------------------------------------------


def as_mapping(settings: Settings, results: Sequence[Evaluated]) -> dict[str, Any]:
    """Everything, with the figures of every video: (clips, seeds) in each arm, null where there is none; of lines
    (clips, seeds, points, 2), what was told and what is seen."""
    return {
        "settings": as_plain(settings),
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
                "headline": headline(result),
                "results": {name: _row(result, name) for name in result.rows},
            }
            | ({"beside the first": verdicts(result, results[0])} if result.beside else {})
            for result in results
        ],
    }


def _row(result: Evaluated, name: str) -> dict[str, Any]:
    row = result.rows[name]
    return {arm: asdict(estimate) | {"values": _nulls(row.values[arm])} for arm, estimate in row.estimates.items()} | {
        **{f"given less {arm}": asdict(gain) for arm, gain in row.gains.items()},
        **({"given less the first's": asdict(result.beside[name])} if name in result.beside else {}),
    }


def _nulls(values: np.ndarray) -> list[Any] | float | None:
    if values.ndim:
        return [_nulls(part) for part in values]
    return None if np.isnan(values) else round(float(values), 6)


# --- Contact sheets -------------------------------------------------------------------------------------------------


def sheet_rows(result: Evaluated, trial: str, seeds: int) -> list[tuple[str, Tensor]]:
    """Strips of the first clips: the source, the condition, what was made of it in each arm, a scene's object found."""
    rows, clips = [], result.clips
    for number in range(min(SHOWN, len(clips))):
        caption = textwrap.shorten(clips.texts[number], 48, placeholder=" ...")
        told = trial in ("text", TOGETHER)
        rows.append((caption if told else f"{number + 1}: source", clips.truth.video[number]))
        if not told:
            condition = TRIALS[trial].condition
            rows.append((f"{condition} given", _picture(result, condition, number)))
        for arm, wiring in _shown(result, trial).items():
            video = result.videos[wiring][number * seeds].float() / 255
            rows.append((arm, video))
            if arm == "given" and clips.truth.mask is not None:
                rows.append(("  object found", _found(video)))
    return rows


def _shown(result: Evaluated, trial: str) -> dict[str, Wiring]:
    return {"given": result.together} if trial == TOGETHER else arms_of(trial)


def _picture(result: Evaluated, condition: str, number: int) -> Tensor:
    """What was given of a clip, as a picture (3 or 1, F, H, W) in [0, 1]."""
    clips = result.clips
    if condition == "style":
        return clips.truth.style[number][:, None]
    return picture_of(condition, clips.conditions[condition][number][None])[0]


def _found(video: Tensor) -> Tensor:
    """A video (3, F, H, W) with all but its object darkened."""
    found, seen = find_objects(video[None]), as_seen(video[None])[0]
    mask = found.mask[0] if found.color[0] != NOTHING else found.mask[0] & False
    return resize_crop((seen * (0.2 + 0.8 * mask))[None], tuple(video.shape[-2:]), "nearest", antialias=False)[0]
