"""Confidence intervals: they cover, they know which samples are independent, and pairs."""

import numpy as np
import pytest

from training.evaluate.statistics import difference, estimate, explained, slope


def test_intervals_cover_the_mean_as_often_as_they_say():
    random = np.random.default_rng(5)
    covered = [(found := estimate(random.normal(3.0, 1.0, (20, 2)))).low <= 3.0 <= found.high for _ in range(200)]
    assert 0.87 <= np.mean(covered) <= 0.99  # of 20 scenes the bootstrap's are a little narrow


def test_seeds_of_a_scene_are_no_independent_samples():
    scenes = np.random.default_rng(1).normal(size=(12, 1))
    one, many = estimate(scenes), estimate(np.repeat(scenes, 8, axis=1))
    assert (one.mean, one.low, one.high) == pytest.approx((many.mean, many.low, many.high))


def test_missing_figures_are_left_out_and_counted():
    values = np.array([[1.0, np.nan], [3.0, 5.0]])
    found = estimate(values)
    assert found.mean == 3.0 and found.missing == 0.25
    none = estimate(np.full((2, 2), np.nan))
    one = estimate(np.array([[1.0, 2.0], [np.nan, np.nan]]))
    assert one.mean == 1.5 and one.low is None and one.high is None  # of one scene, who knows
    assert none.mean is None and none.low is None and none.missing == 1.0


def test_differences_are_of_pairs():
    scenes = np.random.default_rng(2).normal(0, 10, (10, 2))
    found = difference(scenes + 1.0, scenes)
    assert (found.mean, found.low, found.high) == pytest.approx((1.0, 1.0, 1.0))
    assert difference(np.array([[np.nan], [2.0]]), np.array([[0.0], [1.0]])).mean == 1.0


def pairs_of(slope, noise, clips=30, seed=4):
    """Two seeds of three points a clip: what was told, and that times the slope with noise."""
    random = np.random.default_rng(seed)
    told = random.normal(size=(clips, 2, 3))
    return np.stack([told, slope * told + noise * random.normal(size=told.shape)], axis=-1)


def test_lines_go_through_the_origin_and_say_how_much_they_explain():
    clean, noisy = pairs_of(0.7, 0.0), pairs_of(0.7, 0.7)
    assert estimate(clean, slope).mean == pytest.approx(0.7) and estimate(clean, explained).mean == pytest.approx(1.0)
    line, share = estimate(noisy, slope), estimate(noisy, explained)
    assert line.low < 0.7 < line.high and 0.4 < share.mean < 0.6 and share.low < 0.5 < share.high
    told, seen = noisy[..., 0].ravel(), noisy[..., 1].ravel()
    left = np.sum((seen - line.mean * told) ** 2)
    assert share.mean == pytest.approx(1 - left / np.sum(seen**2))
    still = estimate(pairs_of(0.0, 0.0), explained)
    assert still.mean is None and estimate(pairs_of(0.0, 0.0), slope).mean == 0.0


def test_points_that_were_not_told_are_not_missing_and_lost_ones_are():
    values = pairs_of(0.5, 0.0, clips=4)
    values[0, 0] = np.nan  # three that were not told
    values[1, 1, 0, 1] = np.nan  # one of 21 that was not seen
    found = estimate(values, slope)
    assert found.mean == pytest.approx(0.5) and found.missing == pytest.approx(1 / 21)


def test_differences_of_lines_are_of_the_points_that_both_have():
    one, other = pairs_of(0.9, 0.1), pairs_of(0.9, 0.1)
    other[..., 1] -= 0.2 * other[..., 0]
    one[3], other[5, 1, 2] = np.nan, np.nan
    found = difference(one, other, slope)
    assert (found.mean, found.low, found.high) == pytest.approx((0.2, 0.2, 0.2))
    assert difference(one, one, explained).high == 0.0


def test_intervals_are_the_same_at_every_call():
    values = np.random.default_rng(3).normal(size=(7, 3))
    assert estimate(values) == estimate(values)
