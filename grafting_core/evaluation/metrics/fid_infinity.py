"""FID-infinity (Chong & Forsyth 2020): FID is biased by about 1/N; the line through it at 1/N = 0 is not.

The parts are nested, so the residuals of the line say nothing about sampling: the standard error comes from
the influence of every sample on the intercept, through each part that holds it.
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

    `standard_error` is the sampling error of the intercept, the reference being given; None where the
    smallest part has fewer than two samples a feature: there the line's own bias is larger than any
    sampling error.
    """

    value: float
    standard_error: float | None
    shortfall: float
    """By how much the intercept is too low, as FID is a curve in 1/N and not a line; see `_shortfall`."""
    counts: tuple[int, ...]
    distances: tuple[float, ...]

    @property
    def interval(self) -> Interval | None:
        """95 % for the distance itself, further up by the shortfall."""
        if self.standard_error is None:
            return None
        half = Z * self.standard_error
        return self.value - half, self.value + half + self.shortfall


def fid_infinity(
    reference: Gaussian, features_ND: npt.NDArray[np.floating], points: int = POINTS, seed: int = 0
) -> Extrapolation:
    """Least squares over FIDs of growing parts of one fixed shuffle. Raises ValueError below 20 samples."""
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
    """Evenly from a tenth of the samples on, but not below full rank while there are enough for that."""
    start = max(total // 10, min(2 * dims, total // 2), 2)
    return tuple(int(count) for count in np.linspace(start, total, points).round())


def _line(x: Floats, y: Floats) -> tuple[float, float]:
    """Slope and intercept."""
    centred = x - x.mean()
    slope = float((centred * y).sum() / np.square(centred).sum())
    return slope, float(y.mean() - slope * x.mean())


def _weights(counts: tuple[int, ...]) -> Floats:
    """What each distance counts for in the intercept."""
    x = 1 / np.asarray(counts, dtype=np.float64)
    centred = x - x.mean()
    return np.asarray(1 / len(x) - x.mean() * centred / np.square(centred).sum(), dtype=np.float64)


def _shortfall(slope: float, dims: int, counts: tuple[int, ...]) -> float:
    """Of the next term of the expansion: for equal covariances of one width, the slope times D / 8 N^2.

    From the moments of the Marchenko-Pastur law: FID = D (D/4N + (D/N)^2 / 32 + ...) + D / N. Uneven spectra
    have fewer effective dimensions, so it is rather too large.
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
    """Sum over ordered pairs of samples of the square of what the pair counts for in the intercept."""
    squares = np.square(np.cumsum((weights / np.square(np.asarray(counts, np.float64)))[::-1])[::-1])
    sizes = np.asarray([0, *counts], dtype=np.float64)
    return float((squares * np.diff(np.square(sizes))).sum())
