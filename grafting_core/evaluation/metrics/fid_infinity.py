"""FID-infinity (Chong & Forsyth 2020): FID has a bias of about 1/N; its extrapolation to 1/N = 0 has not.

The subsets are nested, so residuals of the line do not show the sampling error: the standard error is
computed from the influence of every sample on the intercept, through each subset that includes it.
"""

from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt

from grafting_core.evaluation.metrics.frechet import Gaussian, frechet_influence, frechet_of_rows
from grafting_core.evaluation.metrics.intervals import Interval, Z, sampling_variance
from grafting_core.evaluation.metrics.moments import Floats, finite_rows

POINTS = 10


@dataclass(frozen=True)
class Extrapolation:
    """Intercept of the line FID(N) = value + slope / N.

    `standard_error` is the sampling error of the intercept for a fixed reference; None if the smallest subset
    has fewer than two samples per feature: then the line's own bias exceeds any sampling error.
    """

    value: float
    standard_error: float | None
    shortfall: float
    """Amount by which the intercept is too low, as FID is not linear in 1/N; see `_shortfall`."""
    counts: tuple[int, ...]
    distances: tuple[float, ...]

    @property
    def interval(self) -> Interval | None:
        """95 % interval of the distance, extended upwards by the shortfall."""
        if self.standard_error is None:
            return None
        half = Z * self.standard_error
        return self.value - half, self.value + half + self.shortfall


def fid_infinity(
    reference: Gaussian, features_ND: npt.NDArray[np.floating], points: int = POINTS, seed: int = 0
) -> Extrapolation:
    """Least squares over FIDs of growing subsets of a fixed shuffle. Raises ValueError below 20 samples."""
    rows = finite_rows(features_ND)
    if len(rows) < 2 * points:
        raise ValueError(f"an extrapolation over {points} counts needs {2 * points} samples, not {len(rows)}")
    counts = _counts(len(rows), reference.dims, points)
    shuffled = rows[np.random.default_rng(seed).permutation(len(rows))]
    distances = [frechet_of_rows(reference, shuffled[:count]) for count in counts]
    slope, value = _line(1 / np.asarray(counts, dtype=np.float64), np.asarray(distances))
    error = _standard_error(reference, shuffled, counts) if counts[0] >= 2 * reference.dims else None
    shortfall = _shortfall(slope, reference.dims, counts)
    return Extrapolation(value, error, shortfall, counts, tuple(distances))


def _counts(total: int, dims: int, points: int) -> tuple[int, ...]:
    """Even counts from a tenth of the samples on, or from full rank if there are enough samples."""
    start = max(total // 10, min(2 * dims, total // 2), 2)
    return tuple(int(count) for count in np.linspace(start, total, points).round())


def _line(x: Floats, y: Floats) -> tuple[float, float]:
    """Slope and intercept of the least-squares line."""
    centred = x - x.mean()
    slope = float((centred * y).sum() / np.square(centred).sum())
    return slope, float(y.mean() - slope * x.mean())


def _weights(counts: tuple[int, ...]) -> Floats:
    """Weight of each distance in the intercept."""
    x = 1 / np.asarray(counts, dtype=np.float64)
    centred = x - x.mean()
    return np.asarray(1 / len(x) - x.mean() * centred / np.square(centred).sum(), dtype=np.float64)


def _shortfall(slope: float, dims: int, counts: tuple[int, ...]) -> float:
    """Contribution of the next term of the expansion: for equal isotropic covariances, slope * D / 8 N^2.

    From the moments of the Marchenko-Pastur law: FID = D (D/4N + (D/N)^2 / 32 + ...) + D / N. Uneven spectra
    have fewer effective dimensions, so this tends to be too large.
    """
    squares = 1 / np.square(np.asarray(counts, dtype=np.float64))
    return max(0.0, -slope * dims / 8 * float(_weights(counts) @ squares))


def _standard_error(reference: Gaussian, shuffled: Floats, counts: tuple[int, ...]) -> float:
    """Infinitesimal jackknife over all samples; see `sampling_variance`."""
    weights, total = _weights(counts), np.zeros(len(shuffled))
    for weight, count in zip(weights, counts, strict=True):
        influence = frechet_influence(reference, shuffled[:count])
        total[:count] += weight * influence.rows / count
    return sqrt(sampling_variance(total, influence.pair_variance * _pairs(weights, counts)))


def _pairs(weights: Floats, counts: tuple[int, ...]) -> float:
    """Sum over ordered pairs of samples of the squared weight of the pair in the intercept."""
    squares = np.square(np.cumsum((weights / np.square(np.asarray(counts, np.float64)))[::-1])[::-1])
    sizes = np.asarray([0, *counts], dtype=np.float64)
    return float((squares * np.diff(np.square(sizes))).sum())
