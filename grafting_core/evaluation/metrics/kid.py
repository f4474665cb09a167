"""Kernel distance KID (Binkowski et al. 2018): unbiased at any number of samples, so fit for small trials."""

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
"""Rows of either set from which an interval's variances are estimated; they are scaled to the whole sets."""


def kernel_distance(
    samples_ND: npt.NDArray[np.floating],
    reference_MD: npt.NDArray[np.floating],
    subsets: int = SUBSETS,
    size: int = SUBSET_SIZE,
    seed: int = SEED,
) -> float:
    """Mean of the squared MMD over random subsets, cubic kernel (x.y / D + 1)^3; may be below zero.

    Subsets are cut to the smaller set; where that is both of them, one subset says it all.
    """
    ones, others = finite_rows(samples_ND), finite_rows(reference_MD)
    size = min(size, len(ones), len(others))
    if size < 2:
        raise ValueError("a kernel distance needs at least 2 samples on either side")
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
    """95 % around a `kernel_distance` of so many subsets, both sets being draws; None below four rows."""
    counts = len(samples_ND), len(reference_MD)
    if min(counts) < 4:
        return None
    variances = _Variances.of(*(part_of(finite_rows(rows), MOST) for rows in (samples_ND, reference_MD)))
    size, whole = min(size, *counts), variances.at(*counts)
    # Subsets drawn of the two sets scatter around the distance of all their rows.
    drawn = 0.0 if size == max(counts) else max(0.0, variances.at(size, size) - whole) / subsets
    half = float(t.ppf(0.975, min(counts) - 1)) * sqrt(whole + drawn)
    return value - half, value + half


@dataclass(frozen=True)
class _Variances:
    """Parts of the variance of the squared MMD, by Hoeffding's decomposition: of a row, of a pair of rows."""

    one: float
    other: float
    ones: float
    others: float
    between: float

    @classmethod
    def of(cls, ones: Floats, others: Floats) -> "_Variances":
        """Unbiased: a row's mean holds a share of the pairs' variance. A row's own may come out negative."""
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
        """The variance of the distance of so many rows.

        Two draws of one distribution have the pairs' variance alone, and an estimate of the rows' that is
        above zero as often as below: cutting it off at zero would make their intervals too wide.
        """
        rows = 4 * self.one / count + 4 * self.other / other_count
        pairs = 2 * self.ones / count**2 + 2 * self.others / other_count**2
        pairs += 4 * self.between / (count * other_count)
        return max(rows + pairs, pairs / 2)


def _centred_square(kernel_NM: Floats) -> float:
    """Mean square of what rows and columns do not explain."""
    centred = kernel_NM - kernel_NM.mean(axis=1, keepdims=True) - kernel_NM.mean(axis=0) + kernel_NM.mean()
    rows, columns = kernel_NM.shape
    return float(np.square(centred).sum() / ((rows - 1) * (columns - 1)))


def squared_mmd(ones_ND: Floats, others_MD: Floats) -> float:
    """The unbiased estimate: pairs of a sample with itself are left out."""
    within = _mean_off_diagonal(_kernel(ones_ND, ones_ND)) + _mean_off_diagonal(_kernel(others_MD, others_MD))
    return within - 2 * float(_kernel(ones_ND, others_MD).mean())


def _kernel(ones_ND: Floats, others_MD: Floats) -> Floats:
    base = ones_ND @ others_MD.T / ones_ND.shape[1] + 1
    return np.asarray(base * base * base, dtype=np.float64)


def _mean_off_diagonal(kernel_NN: Floats) -> float:
    count = len(kernel_NN)
    return float((kernel_NN.sum() - np.trace(kernel_NN)) / (count * (count - 1)))
