"""Streaming, mergeable mean and covariance in float64 (Chan, Golub & LeVeque 1983)."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """`count` rows seen, their mean [D] and the sum of squared deviations [D, D]."""

    count: int
    mean: Floats
    scatter: Floats

    @classmethod
    def of(cls, features_ND: npt.NDArray[np.floating]) -> Self:
        """Moments of one batch. Raises ValueError naming the rows that hold NaN or infinities."""
        rows = np.asarray(features_ND, dtype=np.float64)
        if rows.ndim != 2 or not len(rows):
            raise ValueError(f"features are a matrix of at least one row, not of shape {rows.shape}")
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if len(bad):
            raise ValueError(f"features of samples {bad[:10].tolist()} are not finite ({len(bad)} in all)")
        mean = rows.mean(axis=0)
        centred = rows - mean
        return cls(len(rows), mean, centred.T @ centred)

    def merge(self, other: "Moments") -> "Moments":
        """Moments of both sets together; merge in index order to be reproducible to the bit."""
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"{self.mean.shape[0]} and {other.mean.shape[0]} features cannot be merged")
        count = self.count + other.count
        shift = other.mean - self.mean
        mean = self.mean + shift * (other.count / count)
        scatter = self.scatter + other.scatter + np.outer(shift, shift) * (self.count * other.count / count)
        return Moments(count, mean, scatter)

    @property
    def covariance(self) -> Floats:
        """Unbiased, [D, D]. Raises ValueError below two rows."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 samples, not {self.count}")
        covariance: Floats = self.scatter / (self.count - 1)
        return covariance
