"""FID-infinity (Chong & Forsyth 2020): FID is biased by about 1/N; the line through it at 1/N = 0 is not."""

from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt

from grafting_core.metrics.frechet import Gaussian, frechet_of_rows
from grafting_core.metrics.moments import finite_rows

POINTS = 10


@dataclass(frozen=True)
class Extrapolation:
    """Intercept of the line FID(N) = value + slope / N, with the standard error of the fit."""

    value: float
    standard_error: float
    counts: tuple[int, ...]
    distances: tuple[float, ...]


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
    value, error = _intercept(1 / np.asarray(counts, dtype=np.float64), np.asarray(distances))
    return Extrapolation(value, error, counts, tuple(distances))


def _counts(total: int, dims: int, points: int) -> tuple[int, ...]:
    """Evenly from a tenth of the samples on, but not below full rank while there are enough for that."""
    start = max(total // 10, min(2 * dims, total // 2), 2)
    return tuple(int(count) for count in np.linspace(start, total, points).round())


def _intercept(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> tuple[float, float]:
    centred = x - x.mean()
    slope = float((centred * y).sum() / np.square(centred).sum())
    intercept = float(y.mean() - slope * x.mean())
    residual = float(np.square(y - intercept - slope * x).sum()) / max(1, len(x) - 2)
    return intercept, sqrt(residual * (1 / len(x) + x.mean() ** 2 / float(np.square(centred).sum())))
