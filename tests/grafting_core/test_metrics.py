"""Frechet distance against closed forms and scipy; moments that can be streamed and merged."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from grafting_core.metrics.frechet import fid, frechet_distance
from grafting_core.metrics.moments import Moments


def features(count: int, dims: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, dims)) @ rng.normal(size=(dims, dims)) + rng.normal(size=dims)


def test_equal_covariances_leave_the_distance_of_the_means() -> None:
    covariance = np.cov(features(500, 16), rowvar=False)
    assert frechet_distance(np.zeros(16), covariance, np.full(16, 2.0), covariance) == pytest.approx(
        64, rel=1e-10
    )


def test_isotropic_scaling_has_its_closed_form() -> None:
    covariance, mean = np.cov(features(500, 16), rowvar=False), np.zeros(16)
    expected = (3 - 1) ** 2 * np.trace(covariance)
    assert frechet_distance(mean, covariance, mean, 9 * covariance) == pytest.approx(expected, rel=1e-10)


def test_diagonal_covariances_have_their_closed_form() -> None:
    one, two = np.random.default_rng(0).uniform(0.1, 3, size=(2, 12))
    expected = np.square(np.sqrt(one) - np.sqrt(two)).sum()
    assert frechet_distance(np.zeros(12), np.diag(one), np.zeros(12), np.diag(two)) == pytest.approx(expected)


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


def test_samples_with_nan_are_named() -> None:
    rows = features(10, 4)
    rows[[3, 7], 0] = np.nan
    with pytest.raises(ValueError, match=r"samples \[3, 7\] are not finite"):
        Moments.of(rows)


def test_one_sample_has_no_covariance() -> None:
    with pytest.raises(ValueError, match="at least 2 samples"):
        _ = Moments.of(features(1, 4)).covariance
