"""Learning from what is finished: final quality from scores and screening, and scores from screening.

Ridge regressions. Ranks can flip when designs are finetuned (ModelOpt, TinyFusion), so the
predictor says how far off it is on designs it has not seen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from grafting_core.specs.studies.space import Item, Space

Floats = npt.NDArray[np.float64]
LEAST_FINALS = 5
"""Fewer finished designs than this say nothing that screening does not."""
RIDGE = 1.0


@dataclass(frozen=True)
class Seen:
    """A trial as the predictor sees it: what was known before finetuning, and after it."""

    features: Mapping[str, float]
    final: float | None


@dataclass(frozen=True)
class Predictor:
    """final = intercept + weights . standardised features."""

    names: tuple[str, ...]
    model: Pipeline
    error: float
    """Root mean square of leave-one-out residuals."""
    trained_on: int

    def predict(self, features: Mapping[str, float]) -> float | None:
        """None where a feature is missing."""
        if any(name not in features for name in self.names):
            return None
        return float(self.model.predict([[features[name] for name in self.names]])[0])

    def summary(self) -> dict[str, object]:
        """What is kept of it."""
        weights = dict(zip(self.names, map(float, self.model[-1].coef_), strict=True))
        return {"trained_on": self.trained_on, "leave_one_out_error": self.error, "weights": weights}


def fit(seen: Sequence[Seen]) -> Predictor | None:
    """From the finished ones, on the features that all of them have. None where they are too few."""
    finished = [each for each in seen if each.final is not None]
    if len(finished) < LEAST_FINALS:
        return None
    names = tuple(sorted(set.intersection(*(set(each.features) for each in finished))))
    if not names:
        return None
    features = [[each.features[name] for name in names] for each in finished]
    ridge = RidgeCV(alphas=[RIDGE], store_cv_results=True)  # its squared leave-one-out residuals
    model = make_pipeline(StandardScaler(), ridge).fit(features, [each.final for each in finished])
    return Predictor(names, model, float(np.sqrt(ridge.cv_results_.mean())), len(finished))


def refined_scores(
    space: Space, scores: Mapping[str, float], screened: Sequence[tuple[Sequence[Item], float]]
) -> dict[str, float]:
    """Scores that explain the screening better: each item's own, scaled, and what the mixes say beyond it.

    y = a + b . sum of scores + sum of deviations, the deviations drawn to zero. As they came where fewer
    mixes than `LEAST_FINALS` were screened.
    """
    if len(screened) < LEAST_FINALS:
        return dict(scores)
    keys = [item.key for item in space.items if not item.is_keep]
    place = {key: at for at, key in enumerate(keys)}
    mixes = np.zeros((len(screened), len(keys)))
    for row, (chosen, _) in enumerate(screened):
        mixes[row, [place[item.key] for item in chosen if item.key in place]] = 1.0
    prior = np.array([scores.get(key, 0.0) for key in keys])
    target = np.array([value for _, value in screened])
    slope = _slope(mixes @ prior, target)
    deviations = Ridge(alpha=RIDGE).fit(mixes, target - slope * (mixes @ prior)).coef_
    return dict(zip(keys, map(float, slope * prior + deviations), strict=True))


def _slope(sums: Floats, target: Floats) -> float:
    """Of the target on the sums; never negative, because a score is a harm."""
    spread = float(((sums - sums.mean()) ** 2).sum())
    if spread == 0:
        return 1.0
    return max(0.0, float(((sums - sums.mean()) * (target - target.mean())).sum() / spread))
