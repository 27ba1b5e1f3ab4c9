"""Confidence intervals: coverage, independent samples, paired differences, fitted lines."""

import numpy as np
import pytest

from training.evaluate.statistics import difference, estimate, explained, slope


def test_intervals_cover_the_mean_as_often_as_they_should():
    random = np.random.default_rng(5)
    covered = [(result := estimate(random.normal(3.0, 1.0, (20, 2)))).low <= 3.0 <= result.high for _ in range(200)]
    assert 0.87 <= np.mean(covered) <= 0.99  # with 20 scenes, bootstrap intervals are slightly too narrow


def test_seeds_of_a_scene_are_not_independent_samples():
    scenes = np.random.default_rng(1).normal(size=(12, 1))
    single, many = estimate(scenes), estimate(np.repeat(scenes, 8, axis=1))
    assert (single.mean, single.low, single.high) == pytest.approx((many.mean, many.low, many.high))


def test_missing_figures_are_left_out_and_counted():
    values = np.array([[1.0, np.nan], [3.0, 5.0]])
    result = estimate(values)
    assert result.mean == 3.0 and result.missing == 0.25 and result.clips == 2
    empty = estimate(np.full((2, 2), np.nan))
    single = estimate(np.array([[1.0, 2.0], [np.nan, np.nan]]))
    assert single.mean == 1.5 and single.clips == 1
    assert single.low is None and single.high is None  # one scene has no interval
    assert empty.mean is None and empty.low is None and empty.missing == 1.0


def test_differences_are_paired():
    scenes = np.random.default_rng(2).normal(0, 10, (10, 2))
    result = difference(scenes + 1.0, scenes)
    assert (result.mean, result.low, result.high) == pytest.approx((1.0, 1.0, 1.0))
    assert difference(np.array([[np.nan], [2.0]]), np.array([[0.0], [1.0]])).mean == 1.0


def pairs_of(slope, noise, clips=30, seed=4):
    """Two seeds with three points per clip: targets, and targets times the slope with noise."""
    random = np.random.default_rng(seed)
    target = random.normal(size=(clips, 2, 3))
    return np.stack([target, slope * target + noise * random.normal(size=target.shape)], axis=-1)


def test_lines_go_through_the_origin_and_have_r2():
    clean, noisy = pairs_of(0.7, 0.0), pairs_of(0.7, 0.7)
    assert estimate(clean, slope).mean == pytest.approx(0.7) and estimate(clean, explained).mean == pytest.approx(1.0)
    line, r2 = estimate(noisy, slope), estimate(noisy, explained)
    assert line.low < 0.7 < line.high and 0.4 < r2.mean < 0.6 and r2.low < 0.5 < r2.high
    target, measured = noisy[..., 0].ravel(), noisy[..., 1].ravel()
    residual = np.sum((measured - line.mean * target) ** 2)
    assert r2.mean == pytest.approx(1 - residual / np.sum(measured**2))
    still = estimate(pairs_of(0.0, 0.0), explained)
    assert still.mean is None and estimate(pairs_of(0.0, 0.0), slope).mean == 0.0


def test_points_without_a_target_are_not_missing_and_unmeasured_ones_are():
    values = pairs_of(0.5, 0.0, clips=4)
    values[0, 0] = np.nan  # three without a target
    values[1, 1, 0, 1] = np.nan  # one of 21 without a measured value
    result = estimate(values, slope)
    assert result.mean == pytest.approx(0.5) and result.missing == pytest.approx(1 / 21)


def test_differences_of_lines_use_the_points_that_both_have():
    first, second = pairs_of(0.9, 0.1), pairs_of(0.9, 0.1)
    second[..., 1] -= 0.2 * second[..., 0]
    first[3], second[5, 1, 2] = np.nan, np.nan
    result = difference(first, second, slope)
    assert (result.mean, result.low, result.high) == pytest.approx((0.2, 0.2, 0.2))
    assert difference(first, first, explained).high == 0.0


def test_intervals_are_reproducible():
    values = np.random.default_rng(3).normal(size=(7, 3))
    assert estimate(values) == estimate(values)
