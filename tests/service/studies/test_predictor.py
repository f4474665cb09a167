"""What studies learn from finished designs, against the definitions of ridge regression and leave-one-out."""

import random
from collections.abc import Sequence

import numpy as np
import pytest

from grafting_core.specs.studies.space import Item
from service.domain.study_feasibility import parse_feasible_study
from service.studies.predictor import LEAST_FINALS, RIDGE, Seen, fit, refined_scores
from tests.support.builders import study_document

NAMES = ("rung0", "score")


def finished(count: int, seed: int = 0) -> tuple[list[Seen], np.ndarray, np.ndarray]:
    """Trials with their features as a matrix and their figures."""
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(count, 2)) * [100.0, 0.1] + [5.0, 1.0]
    figures = 0.03 * features[:, 0] + 2 * features[:, 1] + generator.normal(size=count)
    seen = [
        Seen(dict(zip(NAMES, row, strict=True)), figure)
        for row, figure in zip(features.tolist(), figures.tolist(), strict=True)
    ]
    return seen, features, figures


def ridge(design: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, float]:
    """(weights, intercept) that minimise the squared error plus RIDGE times the squared weights."""
    centred = design - design.mean(0)
    gram = centred.T @ centred + RIDGE * np.eye(design.shape[1])
    weights = np.linalg.solve(gram, centred.T @ (target - target.mean()))
    return weights, float(target.mean() - design.mean(0) @ weights)


def test_the_fit_and_its_error_are_those_of_the_definitions() -> None:
    seen, features, figures = finished(12)
    predictor = fit([*seen, Seen({"score": 1.0}, None)])
    assert predictor is not None
    design = (features - features.mean(0)) / features.std(0)
    weights, intercept = ridge(design, figures)
    summary = predictor.summary()
    assert summary["trained_on"] == 12
    assert summary["weights"] == pytest.approx(dict(zip(NAMES, weights, strict=True)))
    point = (np.array([40.0, 0.9]) - features.mean(0)) / features.std(0)
    assert predictor.predict({"rung0": 40.0, "score": 0.9}) == pytest.approx(point @ weights + intercept)
    residuals = []
    for left_out in range(12):
        others = np.arange(12) != left_out
        weights, intercept = ridge(design[others], figures[others])
        residuals.append(figures[left_out] - design[left_out] @ weights - intercept)
    assert summary["leave_one_out_error"] == pytest.approx(np.sqrt(np.mean(np.square(residuals))))


def test_a_feature_that_never_differs_says_nothing() -> None:
    seen = [Seen({"score": float(row), "same": 3.0}, float(row)) for row in range(LEAST_FINALS)]
    predictor = fit(seen)
    assert predictor is not None
    assert predictor.summary()["weights"]["same"] == 0.0
    assert predictor.predict({"score": 2.0, "same": 9.0}) == pytest.approx(2.0)


def test_what_is_missing_is_not_predicted() -> None:
    seen, _, _ = finished(LEAST_FINALS)
    assert fit(seen[1:]) is None
    assert fit([Seen({str(row): 1.0}, 1.0) for row in range(LEAST_FINALS)]) is None
    predictor = fit(seen)
    assert predictor is not None
    assert predictor.predict({"score": 1.0}) is None


def test_scores_are_refined_by_what_mixes_say_beyond_their_sum() -> None:
    spec = parse_feasible_study(study_document())
    items = [item for item in spec.space.items if not item.is_keep]
    chance = random.Random(0)
    scores = {item.key: chance.random() for item in items}
    bad = items[0].key

    def mix() -> Sequence[Item]:
        return [chance.choice(variable.items) for variable in spec.space.variables]

    mixes = [mix() for _ in range(60)]
    told = [(each, sum(scores.get(item.key, 0.0) + (item.key == bad) for item in each)) for each in mixes]
    refined = refined_scores(spec.space, scores, told)
    assert refined.keys() == scores.keys()
    risen = {key: refined[key] - scores[key] for key in refined}
    assert max(risen, key=lambda key: risen[key]) == bad
    assert refined_scores(spec.space, scores, told[: LEAST_FINALS - 1]) == scores
