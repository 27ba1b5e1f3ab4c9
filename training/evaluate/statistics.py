"""Summarises figures of many videos with confidence intervals, by a bootstrap over clips: means and fitted lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 4000
CONFIDENCE = 0.95

Values = Sequence[Sequence[float]] | np.ndarray
"""Figures (clips, seeds), or pairs (clips, seeds, points, 2) of target and measured values; NaN if there is none."""
Statistic = Callable[[np.ndarray], np.ndarray]
"""Summarises pairs from the sums (..., 3) of target², target * measured and measured²; NaN if it is undefined."""


@dataclass(frozen=True)
class Estimate:
    """A figure and its confidence interval. None if nothing was measured; one clip alone has no interval."""

    mean: float | None  # or another statistic
    low: float | None
    high: float | None
    missing: float  # fraction of targets without a measured value, for example because no object was found
    clips: int  # number of clips that it was measured on


def slope(sums: np.ndarray) -> np.ndarray:
    """Return the slope of the least-squares line through the origin: 1 if the motion is followed exactly. Figures
    without targets have targets of 1, so for them it is the mean."""
    return _divided(sums[..., 1], sums[..., 0])


def explained(sums: np.ndarray) -> np.ndarray:
    """Return R², the fraction of the measured values' squares that this line explains, 0..1. A line with a
    negative slope can also have a high R².

    Squares are about zero and not about the mean, because the line goes through zero.
    """
    target, both, measured = np.moveaxis(sums, -1, 0)
    return _divided(both**2, target * measured)


def _divided(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    result = np.full(np.shape(numerator), np.nan)
    return np.divide(numerator, denominator, out=result, where=np.asarray(denominator) > 0)


def estimate(values: Values, statistic: Statistic = slope) -> Estimate:
    """Estimate a statistic of values by the bootstrap.

    A pair without a target, (NaN, NaN), does not count; a pair with a target and no measured value is missing.

    The bootstrap resamples clips, each with all of its seeds, because videos of one clip are not independent. For the
    same number of clips the resamples are the same in every call, so that intervals are reproducible.
    """
    return _estimate([np.asarray(values, dtype=np.float64)], statistic)


def difference(first: Values, second: Values, statistic: Statistic = slope) -> Estimate:
    """Estimate the first minus the second statistic, over the same clips, from those values that both have."""
    sides = [np.asarray(values, dtype=np.float64) for values in (first, second)]
    unpaired = np.isnan(sides[0] + sides[1])
    if unpaired.ndim == 4:
        unpaired = unpaired.any(-1, keepdims=True)
    return _estimate([np.where(unpaired, np.nan, values) for values in sides], statistic)


def _estimate(sides: list[np.ndarray], statistic: Statistic) -> Estimate:
    """Estimate the statistic of values, or the difference of two sets of values, which have NaN at the same places."""
    sides = [values if values.ndim == 4 else np.stack([np.ones_like(values), values], -1) for values in sides]
    sides = [pairs.reshape(len(pairs), -1, 2) for pairs in sides]
    counts, complete = ~np.isnan(sides[0][..., 0]), ~np.isnan(sides[0]).any(-1)
    missing = float(1 - complete.sum() / counts.sum()) if counts.any() else 1.0
    clips, sums = len(complete), []
    for pairs in sides:
        target, measured = np.moveaxis(np.where(complete[..., None], pairs, 0.0), -1, 0)
        sums.append(np.stack([target * target, target * measured, measured * measured], -1).sum(1))  # (clips, 3)

    def figure(sides: list[np.ndarray]) -> np.ndarray:
        figures = [statistic(part) for part in sides]
        return figures[0] if len(figures) == 1 else figures[0] - figures[1]

    mean = float(figure([part.sum(0) for part in sums]))
    measured_clips = int(complete.any(1).sum())
    if np.isnan(mean):
        return Estimate(None, None, None, missing, measured_clips)
    if measured_clips < 2:
        return Estimate(mean, None, None, missing, measured_clips)
    resamples = np.random.default_rng(0).integers(clips, size=(RESAMPLES, clips))
    times = np.zeros((RESAMPLES, clips))  # how often each clip is in each resample
    np.add.at(times, (np.arange(RESAMPLES)[:, None], resamples), 1)
    tails = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    low, high = np.nanquantile(figure([times @ part for part in sums]), tails)
    return Estimate(mean, float(low), float(high), missing, measured_clips)
