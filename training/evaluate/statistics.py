"""Figures of many videos with confidence intervals, by the bootstrap over clips: means, and lines through points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 4000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure and its confidence interval; None where nothing was measured, or for an interval of one clip alone.

    Attributes:
        mean: the mean, or what else the statistic says.
        missing: share of what was to be measured that is not there, as where objects were lost.
    """

    mean: float | None
    low: float | None
    high: float | None
    missing: float


@dataclass(frozen=True)
class Statistic:
    """What many values are summed up by. It depends on them by sums alone, so that clips can be drawn anew quickly.

    Attributes:
        depth: dimensions of one value: 0 for a number.
        terms: values (N, *) -> what is summed (N, K).
        figure: sums (..., 1 + K), the first of them the number of values -> (...), NaN where there are too few.
    """

    depth: int
    terms: Callable[[np.ndarray], np.ndarray]
    figure: Callable[[np.ndarray], np.ndarray]


def _mean(sums: np.ndarray) -> np.ndarray:
    return _over(sums[..., 1], sums[..., 0])


def _pair_terms(pairs: np.ndarray) -> np.ndarray:
    told, seen = pairs[:, 0], pairs[:, 1]
    return np.stack([told * told, told * seen, seen * seen], axis=-1)


def _slope(sums: np.ndarray) -> np.ndarray:
    return _over(sums[..., 2], sums[..., 1])


def _explained(sums: np.ndarray) -> np.ndarray:
    """About zero, as the line goes through it: about its mean, what was seen may vary less than about the line."""
    told_told, told_seen, seen_seen = np.moveaxis(sums[..., 1:], -1, 0)
    return _over(told_seen**2, told_told * seen_seen)


def _over(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.divide(one, other, out=np.full(np.shape(one), np.nan), where=np.asarray(other) > 0)


MEAN = Statistic(0, lambda values: values[:, None], _mean)
SLOPE = Statistic(1, _pair_terms, _slope)
"""Of pairs (told, seen): the slope of the line through the origin by least squares; 1 where all is obeyed."""
R2 = Statistic(1, _pair_terms, _explained)
"""Of the same: the share of the squares of what was seen that this line explains, R²; 0..1, also of a falling one."""


def estimate(values: Sequence[Sequence[float]] | np.ndarray, statistic: Statistic = MEAN) -> Estimate:
    """Of values (clips, seeds), or (clips, seeds, points, 2) of pairs; NaN where there is none.

    A pair of which nothing was told, (NaN, NaN), was not to be measured; one that was told and not seen is missing.

    Whole clips are drawn anew, with all of their seeds: videos of one clip are no independent samples of the clips
    that there are. The resamples are the same at every call for as many clips, so that intervals can be repeated.
    """
    values = np.asarray(values, dtype=np.float64)
    return _estimate([_summed(values, _there(values, statistic), statistic)], statistic, _missing(values, statistic))


def difference(
    one: Sequence[Sequence[float]] | np.ndarray,
    other: Sequence[Sequence[float]] | np.ndarray,
    statistic: Statistic = MEAN,
) -> Estimate:
    """Of one less other, over the same clips: paired value by value, those without a partner left out."""
    pair = [np.broadcast_to(np.asarray(values, dtype=np.float64), np.shape(one)) for values in (one, other)]
    there = _there(pair[0], statistic) & _there(pair[1], statistic)
    missing = max(_missing(np.where(_wide(there, statistic), values, np.nan), statistic) for values in pair)
    return _estimate([_summed(values, there, statistic) for values in pair], statistic, missing)


def _there(values: np.ndarray, statistic: Statistic) -> np.ndarray:
    """Which values are there, (clips, seeds[, points])."""
    return ~np.isnan(values).any(-1) if statistic.depth else ~np.isnan(values)


def _wide(there: np.ndarray, statistic: Statistic) -> np.ndarray:
    return there[..., None] if statistic.depth else there


def _missing(values: np.ndarray, statistic: Statistic) -> float:
    there = _there(values, statistic)
    meant = ~np.isnan(values[..., 0]) if statistic.depth else np.ones_like(there)
    return float(1 - there.sum() / meant.sum()) if meant.any() else 1.0


def _summed(values: np.ndarray, there: np.ndarray, statistic: Statistic) -> np.ndarray:
    """The sums of each clip's values, (clips, 1 + K): first how many there are."""
    flat = np.where(_wide(there, statistic), values, 0.0).reshape(-1, *values.shape[values.ndim - statistic.depth :])
    terms = np.where(there.reshape(-1, 1), statistic.terms(flat), 0.0)
    terms = np.concatenate([there.reshape(-1, 1), terms], axis=1)
    return terms.reshape(len(values), -1, terms.shape[1]).sum(1)


def _estimate(sums: list[np.ndarray], statistic: Statistic, missing: float) -> Estimate:
    """Of the clips' sums, or of the first less the second ones."""
    clips, counts = len(sums[0]), sums[0][:, 0]

    def figure(of: list[np.ndarray]) -> np.ndarray:
        figures = [statistic.figure(part) for part in of]
        return figures[0] if len(figures) == 1 else figures[0] - figures[1]

    mean = float(figure([part.sum(0) for part in sums]))
    if np.isnan(mean):
        return Estimate(None, None, None, missing)
    if (counts > 0).sum() < 2:
        return Estimate(mean, None, None, missing)
    drawn = np.random.default_rng(0).integers(clips, size=(RESAMPLES, clips))
    times = np.zeros((RESAMPLES, clips))  # how often each clip was drawn
    np.add.at(times, (np.arange(RESAMPLES)[:, None], drawn), 1)
    figures = figure([times @ part for part in sums])
    low, high = np.nanquantile(figures, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(mean, float(low), float(high), missing)
