"""Frechet distance of two Gaussians, for FID and sFID (Heusel et al. 2017; Nash et al. 2021).

The costly term is tr (C1 C2)^(1/2). With A A' = C1 it is the sum of the root eigenvalues of A' C2 A, which
is symmetric: real by construction, one Cholesky factor (cached for a reference) and one `eigvalsh`. With
B B' = C2 it is also the nuclear norm of A' B: exact to the last digits for a rank-deficient covariance, and
cheap if B is a small matrix of centred samples.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from grafting_core.evaluation.metrics.moments import Floats, Moments, finite_rows


@dataclass(frozen=True)
class Gaussian:
    """Mean [D] and covariance [D, D] in float64, with the number of samples if known."""

    mean: Floats
    covariance: Floats
    count: int | None = None

    @classmethod
    def of(cls, moments: Moments) -> "Gaussian":
        """Gaussian of moments. Raises ValueError below two samples."""
        return cls(moments.mean, moments.covariance, moments.count)

    @property
    def dims(self) -> int:
        return len(self.mean)

    @cached_property
    def factor(self) -> Floats:
        """A [D, r] with A A' = covariance: triangular, or with r < D columns for lower rank."""
        if self.count is None or self.count > self.dims:
            try:
                return np.asarray(np.linalg.cholesky(self.covariance), dtype=np.float64)
            except np.linalg.LinAlgError:
                pass
        return _thin_factor(self.covariance)

    @property
    def full_rank(self) -> bool:
        return bool(self.factor.shape[1] == self.dims)


def _thin_factor(covariance: Floats) -> Floats:
    """Eigenvectors scaled by root eigenvalues, without directions that are rounding noise."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > max(values[-1], 0) * len(values) * np.finfo(np.float64).eps
    return np.asarray(vectors[:, kept] * np.sqrt(values[kept]), dtype=np.float64)


def frechet_distance(reference: Gaussian, samples: Gaussian) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)); tiny negative values are rounding errors.

    Raises ValueError if the numbers of features differ.
    """
    _check_dims(reference, samples.dims)
    if reference.full_rank and (samples.count is None or samples.count > samples.dims):
        inner = reference.factor.T @ samples.covariance @ reference.factor
        roots = np.sqrt(np.clip(np.linalg.eigvalsh((inner + inner.T) / 2), 0, None))
    else:
        roots = _singular_values(reference.factor.T @ samples.factor)
    return _assembled(reference, samples.mean, float(np.trace(samples.covariance)), roots)


def frechet_of_rows(reference: Gaussian, features_ND: npt.NDArray[np.floating]) -> float:
    """Frechet distance to the Gaussian of samples; avoids their [D, D] covariance if there are few."""
    rows = finite_rows(features_ND)
    if len(rows) < 2:
        raise ValueError(f"a covariance needs at least 2 samples, not {len(rows)}")
    _check_dims(reference, rows.shape[1])
    if len(rows) > rows.shape[1]:
        return frechet_distance(reference, Gaussian.of(Moments.of(rows)))
    mean = rows.mean(axis=0)
    scaled = (rows - mean) / np.sqrt(len(rows) - 1)
    roots = _singular_values(scaled @ reference.factor)
    return _assembled(reference, mean, float(np.square(scaled).sum()), roots)


@dataclass(frozen=True)
class Influence:
    """First-order change of a distance by each row, times N: [N], summing to zero; and the root
    eigenvalues [r] of the product of the covariances.
    """

    rows: Floats
    roots: Floats

    @property
    def pair_variance(self) -> float:
        """Variance of the part that is quadratic in the samples, times N^2; exact for two equal Gaussians."""
        total = self.roots[:, None] + self.roots
        share = np.divide(np.outer(self.roots, self.roots), total, out=np.zeros_like(total), where=total > 0)
        return float(2.25 * np.square(self.roots).sum() + np.square(share).sum())


def frechet_influence(reference: Gaussian, features_ND: npt.NDArray[np.floating]) -> Influence:
    """Influence of each row, from the derivatives of the distance by mean and covariance; the latter is
    I - A (A' C2 A)^(-1/2) A'.
    """
    rows = finite_rows(features_ND)
    _check_dims(reference, rows.shape[1])
    mean = rows.mean(axis=0)
    centred = rows - mean
    if len(rows) > rows.shape[1]:
        inner = reference.factor.T @ (centred.T @ centred / (len(rows) - 1)) @ reference.factor
        roots, turned = _turned((inner + inner.T) / 2, centred @ reference.factor)
    else:
        left, roots, _ = np.linalg.svd(
            centred @ reference.factor / np.sqrt(len(rows) - 1), full_matrices=False
        )
        turned = left * np.sqrt((len(rows) - 1) * roots)
    # The covariance is unbiased: it divides by N - 1.
    spread = np.square(centred).sum(axis=1) - np.square(turned).sum(axis=1)
    influence = 2 * centred @ (mean - reference.mean) + spread * len(rows) / (len(rows) - 1)
    return Influence(np.asarray(influence - influence.mean(), dtype=np.float64), roots)


def _turned(inner: Floats, scaled_ND: Floats) -> tuple[Floats, Floats]:
    """Root eigenvalues of `inner`, and rows times its power of -1/4, without directions of zero width."""
    values, vectors = np.linalg.eigh(inner)
    kept = values > max(values[-1], 0) * len(values) * np.finfo(np.float64).eps
    values, vectors = values[kept], vectors[:, kept]
    return np.sqrt(values), scaled_ND @ vectors / values**0.25


def _singular_values(matrix: Floats) -> Floats:
    return np.asarray(np.linalg.svd(matrix, compute_uv=False), dtype=np.float64)


def _assembled(reference: Gaussian, mean: Floats, trace: float, roots: Floats) -> float:
    squared = float(np.square(reference.mean - mean).sum())
    return squared + float(np.trace(reference.covariance)) + trace - 2 * float(roots.sum())


def _check_dims(reference: Gaussian, dims: int) -> None:
    if reference.dims != dims:
        raise ValueError(f"moments of {reference.dims} and {dims} features cannot be compared")


def fid(reference: Moments, samples: Moments) -> float:
    """FID: Frechet distance of feature moments."""
    return frechet_distance(Gaussian.of(reference), Gaussian.of(samples))
