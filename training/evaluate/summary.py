"""What an evaluation says in short: headline figures, and what of one checkpoint is better than another's."""

from __future__ import annotations

from collections.abc import Callable

from training.evaluate.evaluation import Evaluated, Row
from training.evaluate.trials import TOGETHER


def _alone(one: float | None, other: float | None) -> float | None:
    return one


def _ratio(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None or other <= 0 else one / other


def _less(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


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
    "consistency": ("consistency", _less),
}
"""The measure of each headline figure, and how it is told beside what the clips themselves have."""


def headline(result: Evaluated) -> dict[str, float]:
    """The figures of one checkpoint to steer by; those that were not measured are left out.

    Shares of videos are in 0..1; `*_ratio` are shares of what the clips themselves reach through the autoencoder, as
    `sharpness` is; `consistency` is the likeness of neighbouring frames less that of the clips themselves. `together`
    is the worst of all these with all conditions at once, in shares of its own trial's.
    """
    found, kept = {}, []
    for name, (measure, beside) in HEADLINES.items():
        if row := result.rows.get(measure):
            given, source = (row.estimates[arm].mean for arm in ("given", "source"))
            found[name] = beside(given, source)
            kept.append(kept_together(row))
    found["together"] = min((share for share in kept if share is not None), default=None)
    return {name: figure for name, figure in found.items() if figure is not None}


def kept_together(row: Row) -> float | None:
    """How good a measure is with all conditions at once, in shares of its own trial's: 1 is as good, less is worse."""
    if TOGETHER not in row.estimates:
        return None
    own, together = (row.estimates[arm].mean for arm in ("given", TOGETHER))
    return _ratio(own, together) if row.measure.better == "low" else _ratio(together, own)


def verdicts(result: Evaluated, first: Evaluated) -> dict[str, list[str]]:
    """The measures by what a checkpoint is beside the first one: better, worse, or within the interval of 95 %."""
    found: dict[str, list[str]] = {"better": [], "worse": [], "within the interval": []}
    for name, gain in result.beside.items():
        if gain.low is not None:
            told = gain.low > 0 or gain.high < 0
            word = ("worse", "better")[_is_better(result.rows[name], first.rows[name])] if told else None
            found[word or "within the interval"].append(name)
    return found


def _is_better(row: Row, first: Row) -> bool:
    """Whether a measure is better than the first one's. The nearer to its source counts where that is the aim."""
    one, other = (each.estimates["given"].mean for each in (row, first))
    if row.measure.better == "source":
        return abs(one - row.estimates["source"].mean) < abs(other - first.estimates["source"].mean)
    return one > other if row.measure.better == "high" else one < other
