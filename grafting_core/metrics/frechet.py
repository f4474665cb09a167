"""Frechet distance of two Gaussians, and with it FID (Heusel et al. 2017)."""

import numpy as np

from grafting_core.metrics.moments import Floats, Moments


def frechet_distance(mean_1: Floats, covariance_1: Floats, mean_2: Floats, covariance_2: Floats) -> float:
    """|mean_1 - mean_2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), float64.

    The trace of the root is the sum of the root eigenvalues of A' C2 A with A A' = C1: symmetric, so real
    by construction, and safe when either covariance is rank-deficient. Raises ValueError on mismatch.
    """
    if mean_1.shape != mean_2.shape or covariance_1.shape != covariance_2.shape:
        raise ValueError(f"moments of {mean_1.shape[0]} and {mean_2.shape[0]} features cannot be compared")
    factor = symmetric_factor(covariance_1)
    inner = factor.T @ covariance_2 @ factor
    roots = np.sqrt(np.clip(np.linalg.eigvalsh((inner + inner.T) / 2), 0, None))
    squared = float(np.square(mean_1 - mean_2).sum())
    return squared + float(np.trace(covariance_1) + np.trace(covariance_2) - 2 * roots.sum())


def symmetric_factor(covariance: Floats) -> Floats:
    """A with A A' = covariance: Cholesky where it exists, else by eigenvectors."""
    try:
        return np.asarray(np.linalg.cholesky(covariance), dtype=np.float64)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(covariance)
        return np.asarray(vectors * np.sqrt(np.clip(values, 0, None)), dtype=np.float64)


def fid(reference: Moments, samples: Moments) -> float:
    """Frechet distance of feature moments; tiny negative values are rounding, not an error."""
    return frechet_distance(reference.mean, reference.covariance, samples.mean, samples.covariance)
