"""Predictors from finished designs: final quality from scores and screening, and scores from screening.

These are ridge regressions. Ranks can change when designs are finetuned (ModelOpt, TinyFusion), so the
predictor states its error on unseen designs.
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
"""Least number of finished designs; fewer add nothing to the screening."""
RIDGE = 1.0


@dataclass(frozen=True)
class Seen:
    """Features of a trial before finetuning, and its final quality after it."""

    features: Mapping[str, float]
    final: float | None


@dataclass(frozen=True)
class Predictor:
    """Linear predictor: final = intercept + weights . standardised features."""

    names: tuple[str, ...]
    model: Pipeline
    error: float
    """Root mean square of leave-one-out residuals."""
    trained_on: int

    def predict(self, features: Mapping[str, float]) -> float | None:
        """Predict the final quality; None if a feature is missing."""
        if any(name not in features for name in self.names):
            return None
        return float(self.model.predict([[features[name] for name in self.names]])[0])

    def summary(self) -> dict[str, object]:
        """Return the part of the predictor that is stored."""
        weights = dict(zip(self.names, map(float, self.model[-1].coef_), strict=True))
        return {"trained_on": self.trained_on, "leave_one_out_error": self.error, "weights": weights}


def fit(seen: Sequence[Seen]) -> Predictor | None:
    """Fit to the finished trials, on the features that all of them have; None if they are too few."""
    finished = [trial for trial in seen if trial.final is not None]
    if len(finished) < LEAST_FINALS:
        return None
    names = tuple(sorted(set.intersection(*(set(trial.features) for trial in finished))))
    if not names:
        return None
    features = [[trial.features[name] for name in names] for trial in finished]
    ridge = RidgeCV(alphas=[RIDGE], store_cv_results=True)  # its squared leave-one-out residuals
    model = make_pipeline(StandardScaler(), ridge).fit(features, [trial.final for trial in finished])
    return Predictor(names, model, float(np.sqrt(ridge.cv_results_.mean())), len(finished))


def refined_scores(
    space: Space, scores: Mapping[str, float], screened: Sequence[tuple[Sequence[Item], float]]
) -> dict[str, float]:
    """Return scores that explain the screening better: each item's own, scaled, plus a deviation.

    Fits y = a + b . sum of scores + sum of deviations, with the deviations regularised. With fewer than
    `LEAST_FINALS` screened designs the scores are returned unchanged.
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
    """Return the slope of the target on the sums; never negative, because a score is a damage."""
    spread = float(((sums - sums.mean()) ** 2).sum())
    if spread == 0:
        return 1.0
    return max(0.0, float(((sums - sums.mean()) * (target - target.mean())).sum() / spread))
