"""Kernel distance KID (Binkowski et al. 2018): unbiased at any number of samples, so fit for small trials."""

from math import sqrt

import numpy as np
import numpy.typing as npt

from grafting_core.metrics.intervals import T_19, Interval, blocks_of
from grafting_core.metrics.moments import Floats, finite_rows

SUBSETS = 100
SUBSET_SIZE = 1_000
SEED = 2020
MOST = 20_000
"""Rows that an interval looks at: its blocks stay small enough for a kernel matrix."""


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
    samples_ND: npt.NDArray[np.floating], reference_MD: npt.NDArray[np.floating], value: float
) -> Interval | None:
    """95 % around `value` from disjoint blocks of both sets; None where they are too small.

    Each block's estimate is unbiased and varies rather more than its share of the whole: a careful interval.
    """
    ones, others = (blocks_of(finite_rows(rows)[:MOST]) for rows in (samples_ND, reference_MD))
    found = [squared_mmd(a, b) for a, b in zip(ones, others, strict=False) if min(len(a), len(b)) >= 2]
    if len(found) < 2:
        return None
    half = T_19 * float(np.std(found, ddof=1)) / sqrt(len(found))
    return value - half, value + half


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
