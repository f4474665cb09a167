"""Stored features and what other tools said of them once: a change in either is noticed."""

import json
from pathlib import Path

import numpy as np
import pytest

from grafting_core.evaluation.metrics.frechet import Gaussian, frechet_of_rows
from grafting_core.evaluation.metrics.inception_score import inception_score
from grafting_core.evaluation.metrics.kid import kernel_distance
from grafting_core.evaluation.metrics.moments import Moments
from grafting_core.evaluation.metrics.prdc import Manifold, overlap

GOLDEN = Path(__file__).parent / "golden"
VALUES = json.loads((GOLDEN / "values.json").read_text())


@pytest.mark.parametrize("name", ["near", "far"])
def test_figures_are_what_they_were(name: str) -> None:
    with np.load(GOLDEN / "features.npz", allow_pickle=False) as arrays:
        samples, reference = arrays[name], arrays["reference"]
    told = VALUES[name]
    distance = frechet_of_rows(Gaussian.of(Moments.of(reference)), samples)
    tolerance = 1e-8 if len(samples) > samples.shape[1] else 1e-5
    assert distance == pytest.approx(told["fid by scipy"], rel=tolerance)
    assert distance == pytest.approx(told["fid by torchmetrics"], rel=tolerance)
    found = overlap(Manifold.of(reference), Manifold.of(samples)).means
    assert found["precision"] == pytest.approx(told["precision"], abs=1e-7)
    assert found["recall"] == pytest.approx(told["recall"], abs=1e-7)
    assert kernel_distance(samples, reference, 9, 60) == pytest.approx(told["kid"], rel=1e-9)
    logits = 8 * samples[:, :10].astype(np.float64)
    assert inception_score(logits) == pytest.approx(told["inception score"], rel=1e-9)
