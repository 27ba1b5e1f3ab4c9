"""Figures of many videos with confidence intervals, by the bootstrap over clips: means, and lines through points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 4000
CONFIDENCE = 0.95

Values = Sequence[Sequence[float]] | np.ndarray
"""Figures (clips, seeds), or (clips, seeds, points, 2) of pairs, what was told and what is seen; NaN where none is."""
Statistic = Callable[[np.ndarray], np.ndarray]
"""What pairs are summed up by: of the sums (..., 3) of told², told * seen and seen², NaN where there is none."""


@dataclass(frozen=True)
class Estimate:
    """A figure and its confidence interval; None where nothing was measured, or for an interval of one clip alone."""

    mean: float | None  # or what else the statistic says
    low: float | None
    high: float | None
    missing: float  # share of what was to be measured that is not there, as where objects were lost


def slope(sums: np.ndarray) -> np.ndarray:
    """Of the line through the origin by least squares: 1 where all is obeyed. Of plain figures, seen of 1, the mean."""
    return _over(sums[..., 1], sums[..., 0])


def explained(sums: np.ndarray) -> np.ndarray:
    """The share of the squares of what was seen that this line explains, R²; 0..1, also of a falling one.

    About zero, as the line goes through it: about its mean, what was seen may vary less than about the line.
    """
    told, both, seen = np.moveaxis(sums, -1, 0)
    return _over(both**2, told * seen)


def _over(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.divide(one, other, out=np.full(np.shape(one), np.nan), where=np.asarray(other) > 0)


def estimate(values: Values, statistic: Statistic = slope) -> Estimate:
    """Of values, by the bootstrap.

    A pair of which nothing was told, (NaN, NaN), was not to be measured; one that was told and not seen is missing.

    Whole clips are drawn anew, with all of their seeds: videos of one clip are no independent samples of the clips
    that there are. The resamples are the same at every call for as many clips, so that intervals can be repeated.
    """
    return _estimate([np.asarray(values, dtype=np.float64)], statistic)


def difference(one: Values, other: Values, statistic: Statistic = slope) -> Estimate:
    """Of one less other, over the same clips: paired value by value, those without a partner left out."""
    sides = [np.asarray(values, dtype=np.float64) for values in (one, other)]
    alone = np.isnan(sides[0] + sides[1])
    if alone.ndim == 4:
        alone = alone.any(-1, keepdims=True)
    return _estimate([np.where(alone, np.nan, values) for values in sides], statistic)


def _estimate(sides: list[np.ndarray], statistic: Statistic) -> Estimate:
    """Of values, or of the first less the second ones, of which the same are there."""
    pairs = [values if values.ndim == 4 else np.stack([np.ones_like(values), values], -1) for values in sides]
    pairs = [each.reshape(len(each), -1, 2) for each in pairs]
    meant, there = ~np.isnan(pairs[0][..., 0]), ~np.isnan(pairs[0]).any(-1)
    missing = float(1 - there.sum() / meant.sum()) if meant.any() else 1.0
    clips, sums = len(there), []
    for each in pairs:
        told, seen = np.moveaxis(np.where(there[..., None], each, 0.0), -1, 0)
        sums.append(np.stack([told * told, told * seen, seen * seen], -1).sum(1))  # (clips, 3)

    def figure(of: list[np.ndarray]) -> np.ndarray:
        figures = [statistic(part) for part in of]
        return figures[0] if len(figures) == 1 else figures[0] - figures[1]

    mean = float(figure([part.sum(0) for part in sums]))
    if np.isnan(mean):
        return Estimate(None, None, None, missing)
    if there.any(1).sum() < 2:
        return Estimate(mean, None, None, missing)
    drawn = np.random.default_rng(0).integers(clips, size=(RESAMPLES, clips))
    times = np.zeros((RESAMPLES, clips))  # how often each clip was drawn
    np.add.at(times, (np.arange(RESAMPLES)[:, None], drawn), 1)
    tails = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    low, high = np.nanquantile(figure([times @ part for part in sums]), tails)
    return Estimate(mean, float(low), float(high), missing)
