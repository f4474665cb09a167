"""Frechet distance against closed forms and scipy; moments that can be streamed and merged."""

import functools
import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from grafting_core.evaluation.metrics.frechet import Gaussian, fid, frechet_distance, frechet_of_rows
from grafting_core.evaluation.metrics.moments import Moments, merge_all
from tests.support.feature_sets import features


def test_equal_covariances_leave_the_distance_of_the_means() -> None:
    covariance = np.cov(features(500, 16), rowvar=False)
    one, two = Gaussian(np.zeros(16), covariance), Gaussian(np.full(16, 2.0), covariance)
    assert frechet_distance(one, two) == pytest.approx(64, rel=1e-10)


def test_isotropic_scaling_has_its_closed_form() -> None:
    covariance, mean = np.cov(features(500, 16), rowvar=False), np.zeros(16)
    expected = (3 - 1) ** 2 * np.trace(covariance)
    one, two = Gaussian(mean, covariance), Gaussian(mean, 9 * covariance)
    assert frechet_distance(one, two) == pytest.approx(expected, rel=1e-10)


def test_diagonal_covariances_have_their_closed_form() -> None:
    one, two = np.random.default_rng(0).uniform(0.1, 3, size=(2, 12))
    expected = np.square(np.sqrt(one) - np.sqrt(two)).sum()
    gaussians = [Gaussian(np.zeros(12), np.diag(variances)) for variances in (one, two)]
    assert frechet_distance(*gaussians) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("count", "tolerance"), [(400, 1e-8), (20, 1e-5)], ids=["full rank", "rank-deficient"]
)
def test_it_is_the_textbook_formula(count: int, tolerance: float) -> None:
    one, two = Moments.of(features(count, 32)), Moments.of(features(count, 32, seed=1))
    root = sqrtm(one.covariance @ two.covariance).real
    trace = np.trace(one.covariance + two.covariance - 2 * root)
    expected = np.square(one.mean - two.mean).sum() + trace
    assert fid(one, two) == pytest.approx(expected, rel=tolerance)


def test_a_set_is_at_no_distance_from_itself() -> None:
    moments = Moments.of(features(400, 32))
    assert fid(moments, moments) == pytest.approx(0, abs=1e-8 * np.trace(moments.covariance))


def test_merged_parts_are_the_whole() -> None:
    rows = features(301, 8) + 100
    parts = [Moments.of(part) for part in np.split(rows, [1, 50, 200])]
    merged = parts[0].merge(parts[1]).merge(parts[2]).merge(parts[3])
    whole = Moments.of(rows)
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(merged.covariance, np.cov(rows, rowvar=False), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("count", [10, 40, 300], ids=["N < D", "N near D", "N > D"])
def test_rows_moments_and_covariances_give_one_distance(count: int) -> None:
    """The nuclear norm over few samples, thin factors, and Cholesky with eigvalsh."""
    reference, rows = Moments.of(features(400, 32)), features(count, 32, seed=1)
    by_rows = frechet_of_rows(Gaussian.of(reference), rows)
    assert by_rows == pytest.approx(fid(reference, Moments.of(rows)), rel=1e-9)
    bare = Gaussian(rows.mean(axis=0), np.cov(rows, rowvar=False))
    assert by_rows == pytest.approx(frechet_distance(Gaussian.of(reference), bare), rel=1e-5)


def test_a_singular_reference_is_no_obstacle() -> None:
    flat = Moments.of(features(10, 32))
    assert fid(flat, flat) == pytest.approx(0, abs=1e-8 * np.trace(flat.covariance))
    assert fid(flat, Moments.of(features(400, 32, seed=1))) > 0


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_any_shards_in_any_order_are_the_whole(sizes: list[int], order: random.Random) -> None:
    rows = features(sum(sizes) + 1, 6) + 100
    starts = np.cumsum([0, *sizes])
    bounds = [*itertools.pairwise(starts), (starts[-1], len(rows))]
    parts = [Moments.of(rows[low:high], int(low)) for low, high in bounds]
    in_order = merge_all(parts)
    order.shuffle(parts)
    shuffled, by_merges = merge_all(parts), functools.reduce(Moments.merge, parts)
    assert in_order.scatter.tobytes() == shuffled.scatter.tobytes()
    in_order.check_cover(len(rows))
    by_merges.check_cover(len(rows))
    scale = np.abs(in_order.scatter).max()
    np.testing.assert_allclose(by_merges.scatter, in_order.scatter, rtol=0, atol=1e-12 * scale)
    np.testing.assert_allclose(by_merges.mean, rows.mean(axis=0), rtol=1e-12)


def test_a_retried_shard_is_not_counted_twice() -> None:
    rows = features(30, 4)
    one, two = Moments.of(rows[:20], 0), Moments.of(rows[15:], 15)
    with pytest.raises(ValueError, match=r"samples 15\.\.19 would be counted twice"):
        one.merge(two)


def test_a_missing_shard_is_named() -> None:
    rows = features(40, 4)
    moments = Moments.of(rows[:10], 0).merge(Moments.of(rows[20:30], 20))
    with pytest.raises(ValueError, match=r"samples 10\.\.19, 30\.\.39 are missing"):
        moments.check_cover(40)
    with pytest.raises(ValueError, match="beyond 24"):
        moments.check_cover(25)


def test_samples_with_nan_are_named() -> None:
    rows = features(10, 4)
    rows[[3, 7], 0] = np.nan
    with pytest.raises(ValueError, match=r"samples \[3, 7\] are not finite"):
        Moments.of(rows)


def test_one_sample_has_no_covariance() -> None:
    with pytest.raises(ValueError, match="at least 2 samples"):
        _ = Moments.of(features(1, 4)).covariance
