"""How far a figure could be off: delete-a-block jackknife and bootstrap over the features that are kept.

Resampling images for FID would inflate it, since duplicates lower the effective count; its replicates leave a
block out instead. Means of verdicts (precision, accuracy) are bootstrapped.
"""

from collections.abc import Sequence
from math import sqrt

import numpy as np
import numpy.typing as npt

from grafting_core.metrics.frechet import Gaussian, frechet_distance, frechet_of_rows
from grafting_core.metrics.inception_score import inception_score
from grafting_core.metrics.moments import Floats, Moments, finite_rows

Interval = tuple[float, float]
BLOCKS = 20
T_19 = 2.093
"""97.5 % quantile of Student's t with 19 degrees of freedom."""
RESAMPLES = 1_000


def frechet_interval(reference: Gaussian, features_ND: npt.NDArray[np.floating], value: float) -> Interval:
    """95 % for a Frechet distance, around `value`; each of the 20 replicates costs one eigenvalue problem."""
    parts = blocks_of(finite_rows(features_ND))
    if len(features_ND) - len(parts[0]) <= reference.dims:
        left = [np.concatenate(parts[:block] + parts[block + 1 :]) for block in range(len(parts))]
        return jackknife_interval(value, [frechet_of_rows(reference, rows) for rows in left])
    merged = _all_but_one([Moments.of(part) for part in parts])
    return jackknife_interval(value, [frechet_distance(reference, Gaussian.of(part)) for part in merged])


def blocks_of(rows: Floats) -> list[Floats]:
    """20 parts of one fixed shuffle: rows in index order may go round the classes."""
    shuffled = rows[np.random.default_rng(0).permutation(len(rows))]
    return np.array_split(shuffled, min(BLOCKS, len(rows)))


def _all_but_one(blocks: Sequence[Moments]) -> list[Moments]:
    """Merged from what lies before and after each block, so that nothing is ever subtracted."""
    before: list[Moments | None] = [None]
    after: list[Moments | None] = [None]
    for ahead, behind in zip(blocks[:-1], reversed(blocks[1:]), strict=True):
        before.append(_merged(before[-1], ahead))
        after.append(_merged(after[-1], behind))
    return [_merged(one, other) for one, other in zip(before, reversed(after), strict=True)]


def _merged(one: Moments | None, other: Moments | None) -> Moments:
    if one is None or other is None:
        kept = one or other
        assert kept is not None
        return kept
    return one.merge(other)


def jackknife_interval(value: float, replicates: Sequence[float]) -> Interval:
    """95 % from the figures with each block left out."""
    values = np.asarray(replicates)
    spread = (len(values) - 1) / len(values) * np.square(values - values.mean()).sum()
    half = T_19 * sqrt(float(spread))
    return value - half, value + half


def bootstrap_interval(verdicts_N: npt.NDArray[np.floating], seed: int = 0) -> Interval:
    """95 % of the mean of per-sample verdicts over 1,000 resamples."""
    values = np.asarray(verdicts_N, dtype=np.float64)
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def score_interval(logits_NK: npt.NDArray[np.floating], value: float) -> Interval:
    """95 % for an inception score, around `value`; the replicates are of one split."""
    parts = blocks_of(finite_rows(logits_NK))
    left = [np.concatenate(parts[:block] + parts[block + 1 :]) for block in range(len(parts))]
    return jackknife_interval(value, [inception_score(rows, 1, None) for rows in left])
