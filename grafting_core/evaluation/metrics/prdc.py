"""Precision, recall, density and coverage of two sets of features.

Precision and recall as in Kynkaanniemi et al. 2019 (k = 3), density and coverage as in Naeem et al. 2020
(k = 5), all from squared Euclidean distances, block by block, so that memory is bounded for any set size.
Distances are computed in float32; where rounding could change a comparison, they are recomputed in float64,
so that every comparison equals that in float64.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from grafting_core.evaluation.metrics.moments import finite_rows

NEIGHBOURS = 3
DENSITY_NEIGHBOURS = 5
SPARE = 3
"""Additional neighbours kept while distances are in float32, to survive rounding."""
BLOCK = 2_000


@dataclass(frozen=True)
class Manifold:
    """Feature rows [N, D] float64, and squared distances [N, 5] to their nearest neighbours, ascending."""

    rows: Tensor
    nearest: Tensor

    @classmethod
    def of(
        cls, features_ND: npt.NDArray[np.floating], device: torch.device | str = "cpu", block: int = BLOCK
    ) -> "Manifold":
        """Manifold of features. Raises ValueError below six rows, which have no fifth neighbour."""
        rows = torch.from_numpy(finite_rows(features_ND)).to(device)
        if len(rows) <= DENSITY_NEIGHBOURS:
            raise ValueError(f"nearest neighbours need at least 6 samples, not {len(rows)}")
        return cls(rows, _nearest(rows, block))

    def radii(self, neighbours: int) -> Tensor:
        """Squared distance [N] to the k-th nearest other row."""
        return self.nearest[:, neighbours - 1]


def _nearest(rows: Tensor, block: int) -> Tensor:
    """Five smallest squared distances of every row to other rows, ascending. Each pair is computed once."""
    count = DENSITY_NEIGHBOURS + SPARE
    nearest = torch.full((len(rows), count), torch.inf, device=rows.device)
    indices = torch.zeros((len(rows), count), dtype=torch.long, device=rows.device)
    rough, spans = rows.float(), list(_spans(len(rows), block))
    for index, span in enumerate(spans):
        for later in spans[index:]:
            distances = squared_distances(rough[span], rough[later])
            if span == later:
                distances.fill_diagonal_(torch.inf)
            else:
                _keep_nearest(nearest[later], indices[later], distances.T.contiguous(), span.start)
            _keep_nearest(nearest[span], indices[span], distances, later.start)
    return _exact_nearest(rows, nearest, indices, block)


def _keep_nearest(nearest: Tensor, indices: Tensor, distances: Tensor, first: int) -> None:
    """Merge `distances` [n, m], of columns from `first` on, into the k smallest (`nearest`, `indices`)."""
    count = nearest.shape[1]
    closest, column = distances.topk(min(count, distances.shape[1]), dim=1, largest=False)
    merged = torch.cat([nearest, closest], dim=1)
    best, order = merged.topk(count, dim=1, largest=False)
    nearest.copy_(best)
    indices.copy_(torch.cat([indices, column + first], dim=1).gather(1, order))


def _exact_nearest(rows: Tensor, rough: Tensor, candidates: Tensor, block: int) -> Tensor:
    """Float64 distances of the candidates; rows for which candidates may be wrong are searched again."""
    nearest = torch.empty(len(rows), DENSITY_NEIGHBOURS, dtype=rows.dtype, device=rows.device)
    for span in _spans(len(rows), max(1, block // 8)):
        near = candidates[span]
        exact = _candidate_distances(rows, torch.arange(span.start, span.stop, device=rows.device), near)
        exact.masked_fill_(rough[span].isinf(), torch.inf)
        nearest[span] = exact.topk(DENSITY_NEIGHBOURS, dim=1, largest=False).values
    # A row that was not kept is at least as far as the last kept one, up to rounding.
    doubtful = rough[:, -1].double() - rounding(rows, rows) < nearest[:, -1]
    for part in doubtful.nonzero().flatten().split(max(1, block // 8)):
        exact = squared_distances(rows[part], rows)
        exact[torch.arange(len(part)), part] = torch.inf
        near = exact.topk(min(len(rows) - 1, DENSITY_NEIGHBOURS + SPARE), dim=1, largest=False).indices
        distances = _candidate_distances(rows, part, near)
        nearest[part] = distances.topk(DENSITY_NEIGHBOURS, dim=1, largest=False).values
    return nearest


def _candidate_distances(rows: Tensor, places: Tensor, near: Tensor) -> Tensor:
    """Float64 distances [n, k] of the rows at `places` [n] to those at `near` [n, k]."""
    repeated = places[:, None].expand_as(near).flatten()
    return exact_distances(rows[repeated], rows[near.flatten()]).view_as(near)


def exact_distances(first: Tensor, second: Tensor) -> Tensor:
    """Squared distances [P] of rows taken pair by pair. Both radii and comparisons use this formula: two
    formulas would round differently, so that a row exactly on a ball's edge could be inside or outside.
    """
    return (first - second).square().sum(dim=1)


def rounding(first: Tensor, second: Tensor) -> float:
    """Largest error of a float32 squared distance between two of these rows (Higham 2002, section 3.1)."""
    largest = sum(float(rows.square().sum(dim=1).max()) for rows in (first, second))
    return 2 * (first.shape[1] + 4) * float(np.finfo(np.float32).eps) * largest


def squared_distances(first: Tensor, second: Tensor) -> Tensor:
    """Squared distances [n, m] by the Gram form; negative rounding errors are set to zero."""
    norms = second.square().sum(dim=1)
    product = torch.addmm(norms, first, second.T, alpha=-2)
    return product.add_(first.square().sum(dim=1, keepdim=True)).clamp_(min=0)


def _spans(count: int, block: int) -> Iterator[slice]:
    return (slice(start, min(start + block, count)) for start in range(0, count, block))


@dataclass(frozen=True)
class PRDC:
    """Results by sample, so that means can be resampled.

    `precision` [S]: this sample is inside the reference manifold. `recall` [R]: this reference image is
    inside the sample manifold. `density` [S]: number of reference balls around this sample, divided by k.
    `coverage` [R]: a sample is inside this reference image's ball.
    """

    precision: npt.NDArray[np.float64]
    recall: npt.NDArray[np.float64]
    density: npt.NDArray[np.float64]
    coverage: npt.NDArray[np.float64]

    @property
    def means(self) -> dict[str, float]:
        return {name: float(getattr(self, name).mean()) for name in FIELDS}


FIELDS = ("precision", "recall", "density", "coverage")


def overlap(reference: Manifold, samples: Manifold, block: int = BLOCK) -> PRDC:
    """All four metrics in one pass over the distances between the sets."""
    precise, dense = samples.rows.new_zeros(2, len(samples.rows)).unbind()
    recalled, covered = reference.rows.new_zeros(2, len(reference.rows)).unbind()
    wide, narrow = reference.radii(DENSITY_NEIGHBOURS), reference.radii(NEIGHBOURS)
    own, slack = samples.radii(NEIGHBOURS), rounding(samples.rows, reference.rows)
    rough_samples, rough_reference = samples.rows.float(), reference.rows.float()
    for sample_span in _spans(len(samples.rows), block):
        for reference_span in _spans(len(reference.rows), block):
            distances = squared_distances(rough_samples[sample_span], rough_reference[reference_span])
            pair = _Pair(distances, samples.rows[sample_span], reference.rows[reference_span], slack)
            precise[sample_span] += pair.within(narrow[reference_span]).any(dim=1)
            near = pair.within(wide[reference_span])
            dense[sample_span] += near.sum(dim=1)
            covered[reference_span] += near.any(dim=0)
            recalled[reference_span] += pair.within(own[sample_span, None]).any(dim=0)
    verdicts = (precise > 0, recalled > 0, dense / DENSITY_NEIGHBOURS, covered > 0)
    return PRDC(*(verdict.double().cpu().numpy() for verdict in verdicts))


@dataclass(frozen=True)
class _Pair:
    """Float32 distances between two blocks of rows, each with an error of at most `slack`."""

    distances: Tensor
    samples: Tensor
    reference: Tensor
    slack: float

    def within(self, radii: Tensor) -> Tensor:
        """Pairs whose float64 distance is at most `radii`, which broadcasts over the distances."""
        inside = self.distances <= (radii - self.slack).float()
        perhaps = self.distances <= (radii + self.slack).float()
        if inside.sum() == perhaps.sum():
            return inside
        row, column = (inside ^ perhaps).nonzero(as_tuple=True)
        for part in _spans(len(row), BLOCK):
            rows, columns = row[part], column[part]
            exact = exact_distances(self.samples[rows], self.reference[columns])
            inside[rows, columns] = exact <= radii.expand_as(self.distances)[rows, columns]
        return inside
