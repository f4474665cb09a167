"""Our figures are those of independent implementations, at the level of features and statistics."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor, nn

from grafting_core.evaluation.metrics.adm import adm_gaussian, adm_precision_recall
from grafting_core.evaluation.metrics.frechet import Gaussian, frechet_distance, frechet_of_rows
from grafting_core.evaluation.metrics.inception_score import adm_inception_score, inception_score
from grafting_core.evaluation.metrics.kid import kernel_distance, squared_mmd
from grafting_core.evaluation.metrics.moments import Moments
from grafting_core.evaluation.metrics.prdc import Manifold, overlap
from tests.support.feature_sets import features

RANKS = [(400, 1e-8), (20, 1e-5)]


def statistics(rows: np.ndarray) -> dict[str, np.ndarray]:
    return {"mu": rows.mean(axis=0), "sigma": np.cov(rows, rowvar=False)}


@pytest.mark.parametrize(("count", "tolerance"), RANKS, ids=["full rank", "rank-deficient"])
def test_fid_is_torch_fidelitys(torch_fidelity: Any, count: int, tolerance: float) -> None:
    ones, others = features(count, 32), features(count, 32, seed=1)
    theirs = torch_fidelity("metric_fid").fid_statistics_to_metric(
        statistics(ones), statistics(others), False
    )
    ours = frechet_of_rows(Gaussian.of(Moments.of(others)), ones)
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=tolerance)


def test_fid_is_torchmetrics(torch_fidelity: Any) -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Identity(nn.Module):
        num_features = 32

        def forward(self, rows: Tensor) -> Tensor:
            return rows

    metric = FrechetInceptionDistance(feature=Identity()).set_dtype(torch.float64)
    ones, others = features(400, 32), features(300, 32, seed=1)
    metric.update(torch.from_numpy(ones), real=True)
    metric.update(torch.from_numpy(others), real=False)
    assert frechet_of_rows(Gaussian.of(Moments.of(ones)), others) == pytest.approx(
        metric.compute().item(), rel=1e-9
    )


def test_adm_fid_is_its_formula() -> None:
    """float32 means, `np.cov`, the root of the product."""
    ones, others = (features(400, 24, seed=s).astype(np.float32) for s in (0, 1))
    shift = ones.mean(axis=0) - others.mean(axis=0)
    covariances = [np.cov(rows, rowvar=False) for rows in (ones, others)]
    root = sqrtm(covariances[0] @ covariances[1]).real
    expected = shift @ shift + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * np.trace(root)
    assert frechet_distance(adm_gaussian(ones), adm_gaussian(others)) == pytest.approx(expected, rel=1e-6)


def test_inception_score_is_torch_fidelitys(torch_fidelity: Any) -> None:
    logits = 3 * np.random.default_rng(0).normal(size=(1037, 12))
    for shuffle, seed in ((False, None), (True, 2020)):
        theirs = torch_fidelity("metric_isc").isc_features_to_metric(torch.from_numpy(logits), 10, shuffle)
        ours = inception_score(logits, shuffle_seed=seed)
        assert ours == pytest.approx(theirs["inception_score_mean"], rel=1e-9)


def test_fifty_thousand_samples_have_the_same_score_by_splits_and_by_adms_blocks() -> None:
    logits = np.random.default_rng(0).normal(size=(50_000, 4))
    assert adm_inception_score(logits) == pytest.approx(inception_score(logits, shuffle_seed=None), rel=1e-5)


@pytest.mark.parametrize("part", ["full", "part"])
def test_precision_and_recall_are_torch_fidelitys(torch_fidelity: Any, part: str) -> None:
    ones, others = features(190, 8), features(160, 8, seed=1) * 0.7
    theirs = getattr(torch_fidelity("metric_prc"), f"calculate_precision_recall_{part}")
    expected = theirs(torch.from_numpy(ones), torch.from_numpy(others), 3, 50)
    found = overlap(Manifold.of(others, block=50), Manifold.of(ones, block=70), block=60).means
    assert (found["precision"], found["recall"]) == pytest.approx(expected, abs=1e-7)


def test_kid_is_torch_fidelitys(torch_fidelity: Any) -> None:
    ones, others = features(300, 16), features(250, 16, seed=1)
    theirs = torch_fidelity("metric_kid").kid_features_to_metric(
        torch.from_numpy(ones), torch.from_numpy(others), kid_subsets=7, kid_subset_size=90, verbose=False
    )
    ours = kernel_distance(ones, others, subsets=7, size=90)
    assert ours == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-10)


def test_kid_of_equal_distributions_is_zero_on_average() -> None:
    rng = np.random.default_rng(0)
    found = [squared_mmd(*rng.normal(size=(2, 40, 6))) for _ in range(400)]
    assert abs(np.mean(found)) < 3 * np.std(found) / 20


def test_adm_precision_and_recall_are_close_to_the_exact_ones_and_no_more() -> None:
    """float16 distances decide otherwise in a few cases, as the evaluator's do."""
    ones, others = (np.abs(features(900, 64, seed=s)) / 20 for s in (0, 1))
    exact = overlap(Manifold.of(others), Manifold.of(ones)).means
    half = adm_precision_recall(others, ones)
    assert half == pytest.approx((exact["precision"], exact["recall"]), abs=0.02)
    assert half != (exact["precision"], exact["recall"])
