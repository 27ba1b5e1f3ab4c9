"""What an evaluation says in short: headline figures, and what of one checkpoint is better than another's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from training.evaluate.evaluation import Evaluated, Row
from training.evaluate.trials import TOGETHER


def _given(row: Row) -> float | None:
    return row.estimates["given"].mean


def _of_source(row: Row) -> float | None:
    """In shares of what the clips themselves have, through the autoencoder."""
    return _over(_given(row), row.estimates["source"].mean)


def _less_source(row: Row) -> float | None:
    given, source = _given(row), row.estimates["source"].mean
    return None if given is None or source is None else given - source


@dataclass(frozen=True)
class Headline:
    """A headline figure: of which measure, and how it comes from it."""

    measure: str
    of: Callable[[Row], float | None] = _given


HEADLINES: dict[str, Headline] = {
    "colour": Headline("colour"),
    "shape": Headline("shape"),
    "direction": Headline("direction"),
    "style_palette": Headline("style_palette"),
    "first_frame_ratio": Headline("first_frame", _of_source),
    "single_sketch_ratio": Headline("single_sketch_overlap", _of_source),
    "sketch_ratio": Headline("sketch_overlap", _of_source),
    "depth_ratio": Headline("depth_overlap", _of_source),
    "mask_ratio": Headline("mask_overlap", _of_source),
    "motion_slope": Headline("motion_slope"),
    "motion_r2": Headline("motion_r2"),
    "sharpness": Headline("sharpness"),
    "consistency": Headline("consistency", _less_source),
}


def headline(result: Evaluated) -> dict[str, float]:
    """The figures of one checkpoint to steer by; those that were not measured are left out.

    Shares of videos are in 0..1; `*_ratio` are shares of what the clips themselves reach through the autoencoder, as
    `sharpness` is; `consistency` is the likeness of neighbouring frames less that of the clips themselves. `together`
    is the worst of all these with all conditions at once, in shares of its own trial's.
    """
    rows = {name: result.rows[line.measure] for name, line in HEADLINES.items() if line.measure in result.rows}
    found = {name: HEADLINES[name].of(row) for name, row in rows.items()}
    kept = [share for row in rows.values() if (share := kept_together(row)) is not None]
    found["together"] = min(kept, default=None)
    return {name: figure for name, figure in found.items() if figure is not None}


def kept_together(row: Row) -> float | None:
    """How good a measure is with all conditions at once, in shares of its own trial's: 1 is as good, less is worse."""
    if TOGETHER not in row.estimates:
        return None
    own, together = _given(row), row.estimates[TOGETHER].mean
    return _over(own, together) if row.measure.better == "low" else _over(together, own)


def _over(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None or other <= 0 else one / other


def verdicts(result: Evaluated, first: Evaluated) -> dict[str, list[str]]:
    """The measures by what a checkpoint is beside the first one: better, worse, or within the interval of 95 %."""
    found: dict[str, list[str]] = {"better": [], "worse": [], "within the interval": []}
    for name, gain in result.beside.items():
        if gain.low is None:
            continue
        told = gain.low > 0 or gain.high < 0
        word = ("better" if _is_better(result.rows[name], first.rows[name]) else "worse") if told else None
        found[word or "within the interval"].append(name)
    return found


def _is_better(row: Row, first: Row) -> bool:
    """Whether a measure is better than the first one's. The nearer to its source counts where that is the aim."""
    one, other = _given(row), _given(first)
    if row.measure.better == "source":
        return abs(one - row.estimates["source"].mean) < abs(other - first.estimates["source"].mean)
    return one > other if row.measure.better == "high" else one < other
