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
    kept = DENSITY_NEIGHBOURS + SPARE
    found = torch.full((len(rows), kept), torch.inf, device=rows.device)
    where = torch.zeros((len(rows), kept), dtype=torch.long, device=rows.device)
    rough, spans = rows.float(), list(_spans(len(rows), block))
    for index, one in enumerate(spans):
        for other in spans[index:]:
            distances = squared_distances(rough[one], rough[other])
            if one == other:
                distances.fill_diagonal_(torch.inf)
            else:
                _keep_nearest(found[other], where[other], distances.T.contiguous(), one.start)
            _keep_nearest(found[one], where[one], distances, other.start)
    return _exact_nearest(rows, found, where, block)


def _keep_nearest(found: Tensor, where: Tensor, distances: Tensor, first: int) -> None:
    """Merge `distances` [n, m], of columns from `first` on, into the smallest: `found`, `where` [n, k]."""
    kept = found.shape[1]
    closest, column = distances.topk(min(kept, distances.shape[1]), dim=1, largest=False)
    both = torch.cat([found, closest], dim=1)
    best, order = both.topk(kept, dim=1, largest=False)
    found.copy_(best)
    where.copy_(torch.cat([where, column + first], dim=1).gather(1, order))


def _exact_nearest(rows: Tensor, found: Tensor, where: Tensor, block: int) -> Tensor:
    """Float64 distances of the candidates; rows for which candidates may be wrong are searched again."""
    nearest = torch.empty(len(rows), DENSITY_NEIGHBOURS, dtype=rows.dtype, device=rows.device)
    for one in _spans(len(rows), max(1, block // 8)):
        near = where[one]
        exact = _candidate_distances(rows, torch.arange(one.start, one.stop, device=rows.device), near)
        exact.masked_fill_(found[one].isinf(), torch.inf)
        nearest[one] = exact.topk(DENSITY_NEIGHBOURS, dim=1, largest=False).values
    # A row that was not kept is at least as far as the last kept one, up to rounding.
    doubtful = found[:, -1].double() - rounding(rows, rows) < nearest[:, -1]
    for part in doubtful.nonzero().flatten().split(max(1, block // 8)):
        exact = squared_distances(rows[part], rows)
        exact[torch.arange(len(part)), part] = torch.inf
        near = exact.topk(min(len(rows) - 1, DENSITY_NEIGHBOURS + SPARE), dim=1, largest=False).indices
        distances = _candidate_distances(rows, part, near)
        nearest[part] = distances.topk(DENSITY_NEIGHBOURS, dim=1, largest=False).values
    return nearest


def _candidate_distances(rows: Tensor, places: Tensor, near: Tensor) -> Tensor:
    """Float64 distances [n, k] of the rows at `places` [n] to those at `near` [n, k]."""
    ones = places[:, None].expand_as(near).flatten()
    return exact_distances(rows[ones], rows[near.flatten()]).view_as(near)


def exact_distances(ones: Tensor, others: Tensor) -> Tensor:
    """Squared distances [P] of rows taken pair by pair. Both radii and comparisons use this formula: two
    formulas would round differently, so that a row exactly on a ball's edge could be inside or outside.
    """
    return (ones - others).square().sum(dim=1)


def rounding(ones: Tensor, others: Tensor) -> float:
    """Largest error of a float32 squared distance between two of these rows (Higham 2002, section 3.1)."""
    largest = sum(float(rows.square().sum(dim=1).max()) for rows in (ones, others))
    return 2 * (ones.shape[1] + 4) * float(np.finfo(np.float32).eps) * largest


def squared_distances(ones: Tensor, others: Tensor) -> Tensor:
    """Squared distances [n, m] by the Gram form; negative rounding errors are set to zero."""
    norms = others.square().sum(dim=1)
    product = torch.addmm(norms, ones, others.T, alpha=-2)
    return product.add_(ones.square().sum(dim=1, keepdim=True)).clamp_(min=0)


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
    for one in _spans(len(samples.rows), block):
        for other in _spans(len(reference.rows), block):
            distances = squared_distances(rough_samples[one], rough_reference[other])
            pair = _Pair(distances, samples.rows[one], reference.rows[other], slack)
            precise[one] += pair.within(narrow[other]).any(dim=1)
            near = pair.within(wide[other])
            dense[one] += near.sum(dim=1)
            covered[other] += near.any(dim=0)
            recalled[other] += pair.within(own[one, None]).any(dim=0)
    verdicts = (precise > 0, recalled > 0, dense / DENSITY_NEIGHBOURS, covered > 0)
    return PRDC(*(verdict.double().cpu().numpy() for verdict in verdicts))


@dataclass(frozen=True)
class _Pair:
    """Float32 distances between two blocks of rows, each with an error of at most `slack`."""

    distances: Tensor
    ones: Tensor
    others: Tensor
    slack: float

    def within(self, radii: Tensor) -> Tensor:
        """Pairs whose float64 distance is at most `radii`, which broadcasts over the distances."""
        inside = self.distances <= (radii - self.slack).float()
        perhaps = self.distances <= (radii + self.slack).float()
        if inside.sum() == perhaps.sum():
            return inside
        row, column = (inside ^ perhaps).nonzero(as_tuple=True)
        for part in _spans(len(row), BLOCK):
            one, other = row[part], column[part]
            exact = exact_distances(self.ones[one], self.others[other])
            inside[one, other] = exact <= radii.expand_as(self.distances)[one, other]
        return inside
