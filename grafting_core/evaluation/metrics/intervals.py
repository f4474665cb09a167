"""Confidence intervals of metrics, from features.

Resampling images would inflate a distance, since duplicates lower the effective count: variances come from
each row's influence, or from smaller draws. Every interval is tested with draws of known distributions
(`benchmarks/coverage.py`).
"""

from collections.abc import Sequence
from math import sqrt

import numpy as np
import numpy.typing as npt

from grafting_core.evaluation.metrics.frechet import Gaussian, frechet_influence
from grafting_core.evaluation.metrics.inception_score import split_scores
from grafting_core.evaluation.metrics.moments import Floats

Interval = tuple[float, float]
Z, T_9, T_19 = 1.96, 2.262, 2.093
"""97.5 % quantiles: the normal distribution's, and Student's with 9 and 19 degrees of freedom."""


def frechet_interval(reference: Gaussian, features_ND: npt.NDArray[np.floating], value: float) -> Interval:
    """95 % interval around `value` for other draws of the same size, compared with this reference.

    Not an interval for the distance of the distributions, which is smaller by about 1/N for N samples.
    """
    influence, count = frechet_influence(reference, features_ND), len(features_ND)
    half = Z * sqrt(sampling_variance(influence.rows / count, influence.pair_variance / count**2))
    return value - half, value + half


def sampling_variance(influences_N: Floats, pairs: float) -> float:
    """Infinitesimal jackknife; it counts the part that is quadratic in the samples twice, so it is
    subtracted once.
    """
    return max(float(np.square(influences_N).sum()) - pairs, pairs)


def jackknife_variance(replicates: Sequence[float]) -> float:
    """Jackknife variance from the values with one block left out."""
    values = np.asarray(replicates, dtype=np.float64)
    return float((len(values) - 1) / len(values) * np.square(values - values.mean()).sum())


def label_interval(verdicts_N: npt.NDArray[np.bool_]) -> Interval:
    """95 % interval of the share of independent results that are true."""
    return share_interval(float(np.mean(verdicts_N)), len(verdicts_N))


def part_of(rows: Floats, most: int) -> Floats:
    """At most `most` rows, of a fixed shuffle."""
    return rows if len(rows) <= most else rows[np.random.default_rng(0).permutation(len(rows))[:most]]


def share_interval(share: float, verdicts: float, z: float = Z) -> Interval:
    """95 % interval of a share as uncertain as that of this many independent results (Wilson 1927)."""
    ratio = z**2 / verdicts
    middle = (share + ratio / 2) / (1 + ratio)
    half = z / (1 + ratio) * sqrt(share * (1 - share) / verdicts + ratio / 4 / verdicts)
    return max(0.0, middle - half), min(1.0, middle + half)


def score_interval(logits_NK: npt.NDArray[np.floating], value: float) -> Interval:
    """95 % interval for other draws of the same size: the splits that an inception score averages are
    independent draws.
    """
    scores = split_scores(logits_NK)
    half = T_9 * float(np.std(scores, ddof=1)) / sqrt(len(scores))
    return value - half, value + half
