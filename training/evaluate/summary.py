"""Summary of an evaluation: headline figures, and the measures in which one checkpoint is better than another."""

from __future__ import annotations

from collections.abc import Callable

from training.evaluate.evaluation import Result, Row
from training.evaluate.trials import TOGETHER


def _alone(figure: float | None, source: float | None) -> float | None:
    return figure


def _ratio(figure: float | None, source: float | None) -> float | None:
    return None if figure is None or source is None or source <= 0 else figure / source


def _minus(figure: float | None, source: float | None) -> float | None:
    return None if figure is None or source is None else figure - source


HEADLINES: dict[str, tuple[str, Callable[[float | None, float | None], float | None]]] = {
    "colour": ("colour", _alone),
    "shape": ("shape", _alone),
    "direction": ("direction", _alone),
    "style_palette": ("style_palette", _alone),
    "first_frame_ratio": ("first_frame", _ratio),
    "single_sketch_ratio": ("single_sketch_overlap", _ratio),
    "sketch_ratio": ("sketch_overlap", _ratio),
    "depth_ratio": ("depth_overlap", _ratio),
    "mask_ratio": ("mask_overlap", _ratio),
    "motion_slope": ("motion_slope", _alone),
    "motion_r2": ("motion_r2", _alone),
    "sharpness": ("sharpness", _alone),
    "consistency": ("consistency", _minus),
}
"""The measure of each headline figure, and how it is combined with the figure of the clips themselves."""


FEWEST = 10
"""Clips below which a difference gets no verdict. Bootstrap intervals of few clips are too narrow: for differences that
are only chance, they exclude zero in 24 % of all cases with 3 clips, 10 % with 10, and 5 % with 30 (simulated)."""
TOO_FEW = "too few clips"


def headline(result: Result) -> dict[str, float]:
    """Return the headline figures of one checkpoint, without those that were not measured.

    Fractions of videos are in 0..1. `*_ratio` and `sharpness` are relative to the clips themselves, encoded and decoded
    by the autoencoder. `consistency` is the similarity of neighbouring frames minus that of the clips themselves.
    `together` is the worst of all these with all conditions at once, relative to its own trial.
    """
    figures, fractions = {}, []
    for name, (measure, combine) in HEADLINES.items():
        if row := result.rows.get(measure):
            figures[name] = combine(*(row.estimates[arm].mean for arm in ("given", "source")))
            fractions.append(kept_together(row))
    figures["together"] = min((fraction for fraction in fractions if fraction is not None), default=None)
    return {name: figure for name, figure in figures.items() if figure is not None}


def kept_together(row: Row) -> float | None:
    """Return a measure with all conditions at once, relative to its own trial: 1 is as good, less is worse."""
    if TOGETHER not in row.estimates:
        return None
    own, together = (row.estimates[arm].mean for arm in ("given", TOGETHER))
    return _ratio(own, together) if row.measure.better == "low" else _ratio(together, own)


def verdicts(result: Result, first: Result) -> dict[str, list[str]]:
    """Sort the measures of a checkpoint into better or worse than the first one's, or within the 95 % interval; those
    of fewer than `FEWEST` clips into neither."""
    names: dict[str, list[str]] = {"better": [], "worse": [], "within the interval": [], TOO_FEW: []}
    for name, gain in result.over_first.items():
        if gain.mean is not None and gain.clips < FEWEST:
            names[TOO_FEW].append(name)
        elif gain.low is not None:
            significant = gain.low > 0 or gain.high < 0
            word = ("worse", "better")[_is_better(result.rows[name], first.rows[name])] if significant else None
            names[word or "within the interval"].append(name)
    return names


def _is_better(row: Row, first: Row) -> bool:
    """Whether a measure is better than the first checkpoint's, or closer to its source if that is the aim."""
    own, other = (each.estimates["given"].mean for each in (row, first))
    if row.measure.better == "source":
        return abs(own - row.estimates["source"].mean) < abs(other - first.estimates["source"].mean)
    return own > other if row.measure.better == "high" else own < other
