"""Kernel distance KID (Binkowski et al. 2018): unbiased for any number of samples, so usable for few."""

from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt
from scipy.stats import t

from grafting_core.evaluation.metrics.intervals import Interval, part_of
from grafting_core.evaluation.metrics.moments import Floats, finite_rows

SUBSETS = 100
SUBSET_SIZE = 1_000
SEED = 2020
MOST = 2_000
"""Maximum rows of either set for estimating an interval's variances, which are scaled to the whole sets."""


def kernel_distance(
    samples_ND: npt.NDArray[np.floating],
    reference_MD: npt.NDArray[np.floating],
    subsets: int = SUBSETS,
    size: int = SUBSET_SIZE,
    seed: int = SEED,
) -> float:
    """Mean of the squared MMD over random subsets, cubic kernel (x.y / D + 1)^3; may be negative.

    Subsets are at most as large as the smaller set; if both sets are that small, one subset is exact.
    """
    ones, others = finite_rows(samples_ND), finite_rows(reference_MD)
    size = min(size, len(ones), len(others))
    if size < 2:
        raise ValueError("a kernel distance needs at least 2 samples on each side")
    if size == len(ones) == len(others):
        return squared_mmd(ones, others)
    rng = np.random.RandomState(seed)
    draws = [
        (rng.choice(len(ones), size, replace=False), rng.choice(len(others), size, replace=False))
        for _ in range(subsets)
    ]
    return float(np.mean([squared_mmd(ones[a], others[b]) for a, b in draws]))


def kernel_interval(
    samples_ND: npt.NDArray[np.floating],
    reference_MD: npt.NDArray[np.floating],
    value: float,
    subsets: int = SUBSETS,
    size: int = SUBSET_SIZE,
) -> Interval | None:
    """95 % interval of a `kernel_distance`, treating both sets as random draws; None below four rows."""
    counts = len(samples_ND), len(reference_MD)
    if min(counts) < 4:
        return None
    variances = _Variances.of(*(part_of(finite_rows(rows), MOST) for rows in (samples_ND, reference_MD)))
    size, whole = min(size, *counts), variances.at(*counts)
    # Distances of random subsets scatter around the distance of all rows.
    drawn = 0.0 if size == max(counts) else max(0.0, variances.at(size, size) - whole) / subsets
    half = float(t.ppf(0.975, min(counts) - 1)) * sqrt(whole + drawn)
    return value - half, value + half


@dataclass(frozen=True)
class _Variances:
    """Variance components of the squared MMD by Hoeffding's decomposition: per row, and per pair of rows."""

    one: float
    other: float
    ones: float
    others: float
    between: float

    @classmethod
    def of(cls, ones: Floats, others: Floats) -> "_Variances":
        """Unbiased estimates: the pairs' share of a row mean's variance is subtracted; may be negative."""
        within, beyond, across = _kernel(ones, ones), _kernel(others, others), _kernel(ones, others)
        np.fill_diagonal(within, (within.sum(axis=1) - np.diag(within)) / (len(ones) - 1))
        np.fill_diagonal(beyond, (beyond.sum(axis=1) - np.diag(beyond)) / (len(others) - 1))
        one = float((within.mean(axis=1) - across.mean(axis=1)).var(ddof=1))
        other = float((beyond.mean(axis=1) - across.mean(axis=0)).var(ddof=1))
        pairs = [_centred_square(kernel) for kernel in (within, beyond, across)]
        one -= pairs[0] / len(ones) + pairs[2] / len(others)
        other -= pairs[1] / len(others) + pairs[2] / len(ones)
        return cls(one, other, *pairs)

    def at(self, count: int, other_count: int) -> float:
        """Variance of the distance for these numbers of rows.

        If both sets have the same distribution, only the pairs contribute, and the estimate of the rows' part
        is negative as often as positive: setting it to zero would make intervals too wide.
        """
        rows = 4 * self.one / count + 4 * self.other / other_count
        pairs = 2 * self.ones / count**2 + 2 * self.others / other_count**2
        pairs += 4 * self.between / (count * other_count)
        return max(rows + pairs, pairs / 2)


def _centred_square(kernel_NM: Floats) -> float:
    """Mean square of the residuals after removing row and column means."""
    centred = kernel_NM - kernel_NM.mean(axis=1, keepdims=True) - kernel_NM.mean(axis=0) + kernel_NM.mean()
    rows, columns = kernel_NM.shape
    return float(np.square(centred).sum() / ((rows - 1) * (columns - 1)))


def squared_mmd(ones_ND: Floats, others_MD: Floats) -> float:
    """Unbiased estimate: pairs of a sample with itself are left out."""
    within = _mean_off_diagonal(_kernel(ones_ND, ones_ND)) + _mean_off_diagonal(_kernel(others_MD, others_MD))
    return within - 2 * float(_kernel(ones_ND, others_MD).mean())


def _kernel(ones_ND: Floats, others_MD: Floats) -> Floats:
    base = ones_ND @ others_MD.T / ones_ND.shape[1] + 1
    return np.asarray(base * base * base, dtype=np.float64)


def _mean_off_diagonal(kernel_NN: Floats) -> float:
    count = len(kernel_NN)
    return float((kernel_NN.sum() - np.trace(kernel_NN)) / (count * (count - 1)))
