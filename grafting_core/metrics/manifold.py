"""Do two sets of features cover each other? Precision and recall, density and coverage.

Precision and recall as Kynkaanniemi et al. 2019 (k = 3), density and coverage as Naeem et al. 2020 (k = 5),
all from squared Euclidean distances in float64, block by block: memory is bounded whatever the set sizes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from grafting_core.metrics.moments import finite_rows

NEIGHBOURS = 3
DENSITY_NEIGHBOURS = 5
BLOCK = 2_000


@dataclass(frozen=True)
class Manifold:
    """Feature rows [N, D] float64 and, a column each, their squared distances to the nearest neighbours."""

    rows: Tensor
    nearest: Tensor

    @classmethod
    def of(
        cls, features_ND: npt.NDArray[np.floating], device: torch.device | str = "cpu", block: int = BLOCK
    ) -> "Manifold":
        """Raises ValueError below six rows, where a fifth neighbour does not exist."""
        rows = torch.from_numpy(finite_rows(features_ND)).to(device)
        if len(rows) <= DENSITY_NEIGHBOURS:
            raise ValueError(f"nearest neighbours need at least 6 samples, not {len(rows)}")
        return cls(rows, _nearest(rows, block))

    def radii(self, neighbours: int) -> Tensor:
        """Squared distance [N] to the k-th nearest other row."""
        return self.nearest[:, neighbours - 1]


def _nearest(rows: Tensor, block: int) -> Tensor:
    """The five smallest squared distances of every row to another, ascending. Each pair is met once."""
    found = torch.full((len(rows), DENSITY_NEIGHBOURS), torch.inf, dtype=rows.dtype, device=rows.device)
    spans = list(_spans(len(rows), block))
    for index, one in enumerate(spans):
        for other in spans[index:]:
            distances = squared_distances(rows[one], rows[other])
            if one == other:
                distances.fill_diagonal_(torch.inf)
            else:
                _keep_nearest(found[other], distances.T.contiguous())
            _keep_nearest(found[one], distances)
    return found


def _keep_nearest(found: Tensor, distances: Tensor) -> None:
    """Write to `found` [n, 5] the smallest of it and of `distances` [n, m]."""
    closest = distances.topk(min(DENSITY_NEIGHBOURS, distances.shape[1]), dim=1, largest=False).values
    both = torch.cat([found, closest], dim=1)
    found.copy_(both.topk(DENSITY_NEIGHBOURS, dim=1, largest=False).values)


def squared_distances(ones: Tensor, others: Tensor) -> Tensor:
    """[n, m] by the Gram form, rounding below zero cut off."""
    norms = others.square().sum(dim=1)
    product = torch.addmm(norms, ones, others.T, alpha=-2)
    return product.add_(ones.square().sum(dim=1, keepdim=True)).clamp_(min=0)


def _spans(count: int, block: int) -> Iterator[slice]:
    return (slice(start, min(start + block, count)) for start in range(0, count, block))


@dataclass(frozen=True)
class Overlap:
    """Verdicts sample by sample, so that any mean of them can be resampled.

    `precision` [S]: this sample is inside the reference manifold. `recall` [R]: this reference image is
    inside the sample manifold. `density` [S]: reference balls around this sample, in units of k.
    `coverage` [R]: a sample is inside this reference image's own ball.
    """

    precision: npt.NDArray[np.float64]
    recall: npt.NDArray[np.float64]
    density: npt.NDArray[np.float64]
    coverage: npt.NDArray[np.float64]

    @property
    def means(self) -> dict[str, float]:
        return {name: float(getattr(self, name).mean()) for name in FIELDS}


FIELDS = ("precision", "recall", "density", "coverage")


def overlap(reference: Manifold, samples: Manifold, block: int = BLOCK) -> Overlap:
    """All four in one pass over the distances between the sets."""
    precise, dense = samples.rows.new_zeros(2, len(samples.rows)).unbind()
    recalled = reference.rows.new_zeros(len(reference.rows))
    closest = torch.full_like(recalled, torch.inf)
    wide, narrow = reference.radii(DENSITY_NEIGHBOURS), reference.radii(NEIGHBOURS)
    for one in _spans(len(samples.rows), block):
        own = samples.radii(NEIGHBOURS)[one, None]
        for other in _spans(len(reference.rows), block):
            distances = squared_distances(samples.rows[one], reference.rows[other])
            precise[one] += (distances <= narrow[other]).any(dim=1)
            dense[one] += (distances <= wide[other]).sum(dim=1)
            recalled[other] += (distances <= own).any(dim=0)
            closest[other] = torch.minimum(closest[other], distances.amin(dim=0))
    verdicts = (precise > 0, recalled > 0, dense / DENSITY_NEIGHBOURS, closest <= wide)
    return Overlap(*(verdict.double().cpu().numpy() for verdict in verdicts))
