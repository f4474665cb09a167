"""Computations in which the guided-diffusion evaluator differs, for comparison with published numbers.

Its mean is a float32 sum, its neighbour distances are float16 unless a block of 10,000 by 10,000 overflows,
and a point counts as its own neighbour. (Its inception score is in `inception_score`.) The matrix root is the
same by any method, so the fast method is used here too.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from grafting_core.evaluation.metrics.frechet import Gaussian
from grafting_core.evaluation.metrics.moments import finite_rows

ROWS = 10_000
NEIGHBOURS = 3
Singles = npt.NDArray[np.float32]


def adm_gaussian(features_ND: npt.NDArray[np.floating]) -> Gaussian:
    """Gaussian with float32 mean and float64 covariance."""
    rows = finite_rows(features_ND).astype(np.float32)
    covariance = np.atleast_2d(np.cov(rows, rowvar=False))
    return Gaussian(rows.mean(axis=0).astype(np.float64), covariance, len(rows))


def adm_precision_recall(
    reference_MD: npt.NDArray[np.floating], samples_ND: npt.NDArray[np.floating]
) -> tuple[float, float]:
    """Share of samples inside the reference manifold, and of reference images inside the samples'."""
    reference, samples = (finite_rows(rows).astype(np.float32) for rows in (reference_MD, samples_ND))
    reference_radii, sample_radii = _radii(reference), _radii(samples)
    recalled, precise = np.zeros(len(reference), bool), np.zeros(len(samples), bool)
    for span in _spans(len(reference)):
        for sample_span in _spans(len(samples)):
            distances = half_distances(reference[span], samples[sample_span])
            recalled[span] |= (distances <= sample_radii[sample_span]).any(axis=1)
            precise[sample_span] |= (distances <= reference_radii[span, None]).any(axis=0)
    return float(precise.mean()), float(recalled.mean())


def _radii(rows: Singles) -> Singles:
    """Distance [N] at index 3 of the ordered distances; index 0 is usually the point itself."""
    radii = np.empty(len(rows), np.float32)
    for span in _spans(len(rows)):
        distances = np.concatenate([half_distances(rows[span], rows[o]) for o in _spans(len(rows))], axis=1)
        radii[span] = np.partition(distances, NEIGHBOURS, axis=1)[:, NEIGHBOURS]
    return radii


def _spans(count: int) -> Iterator[slice]:
    return (slice(start, start + ROWS) for start in range(0, count, ROWS))


def half_distances(ones: Singles, others: Singles) -> Singles:
    """Squared distances rounded to float16, or in float32 if a value of the block overflows."""
    halves = [rows.astype(np.float16).astype(np.float32) for rows in (ones, others)]
    with np.errstate(over="ignore", invalid="ignore"):
        norms = [np.square(rows.astype(np.float16)).astype(np.float32).sum(axis=1) for rows in halves]
        product = (halves[0] @ halves[1].T).astype(np.float16)
        left = norms[0].astype(np.float16)[:, None] - np.float16(2) * product
        distances = np.maximum(left + norms[1].astype(np.float16), np.float16(0))
    singles: Singles = distances.astype(np.float32)
    if not np.isfinite(singles).all():
        norms = [np.square(rows).sum(axis=1) for rows in (ones, others)]
        singles = np.maximum(norms[0][:, None] - 2 * (ones @ others.T) + norms[1], 0)
    return singles
