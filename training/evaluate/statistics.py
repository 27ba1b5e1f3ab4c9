"""Means with confidence intervals, by the bootstrap over clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 4000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean and its confidence interval; None where nothing was measured, or for an interval of one clip alone.

    Attributes:
        missing: share of the figures that are not there, as where objects were lost.
    """

    mean: float | None
    low: float | None
    high: float | None
    missing: float


def estimate(values: Sequence[Sequence[float]] | np.ndarray) -> Estimate:
    """Of figures (clips, seeds), NaN where there is none.

    Whole clips are drawn anew, with all of their seeds: videos of one clip are no independent samples of the clips
    that there are. The resamples are the same at every call for as many clips, so that intervals can be repeated.
    """
    values = np.asarray(values, dtype=np.float64)
    there = ~np.isnan(values)
    missing = float(1 - there.mean())
    if not there.any():
        return Estimate(None, None, None, missing)
    sums, counts = np.where(there, values, 0.0).sum(1), there.sum(1)
    mean = float(sums.sum() / counts.sum())
    if (counts > 0).sum() < 2:
        return Estimate(mean, None, None, missing)
    drawn = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    totals = counts[drawn].sum(1)
    means = sums[drawn].sum(1)[totals > 0] / totals[totals > 0]
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(mean, float(low), float(high), missing)


def difference(one: np.ndarray, other: np.ndarray) -> Estimate:
    """Of the paired differences one - other, figure by figure; those without a partner are left out."""
    return estimate(np.asarray(one, dtype=np.float64) - np.asarray(other, dtype=np.float64))
