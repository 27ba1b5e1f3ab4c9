"""Confidence intervals: they cover, they know which samples are independent, and pairs."""

import numpy as np
import pytest

from training.evaluate.statistics import difference, estimate


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


def test_intervals_are_the_same_at_every_call():
    values = np.random.default_rng(3).normal(size=(7, 3))
    assert estimate(values) == estimate(values)
