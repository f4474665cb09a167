"""Intervals of precision, recall, density and coverage, from small disjoint draws of both sets.

Whether one row is inside depends on its neighbours in the other set and on theirs, so results by row are
not independent and cannot be resampled one by one; and radii jump if rows are left out, so a jackknife is far
too wide. But balls of the k-th neighbour adapt to the density of rows: thinning both sets equally hardly
changes the metrics, or the ratio of their variance to that of independent results. The draws estimate this
ratio. Density, a mean of counts, has no such jumps, and a few reference rows in the middle of a thinned set
would weigh too little: it has a jackknife.
"""

from collections.abc import Mapping
from math import sqrt

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from grafting_core.evaluation.metrics.intervals import T_19, Interval, jackknife_variance, share_interval
from grafting_core.evaluation.metrics.moments import Floats, finite_rows
from grafting_core.evaluation.metrics.prdc import DENSITY_NEIGHBOURS, FIELDS, NEIGHBOURS, squared_distances

GROUPS, ROUNDS, BLOCKS = 2, 40, 20
"""Disjoint draws of one shuffle, and shuffles: variances within a round are averaged over rounds."""
ROUNDS_OF_MANY = 12
"""Rounds with draws of more than `MOST` rows (a small set with a large one): each takes a second."""
FEWEST_OF_A_GROUP, ROWS_OF_A_GROUP, MOST = 25, 200, 1_000
FEWEST = GROUPS * FEWEST_OF_A_GROUP
"""Minimum rows of either set for an interval."""


def overlap_intervals(
    reference_MD: npt.NDArray[np.floating], samples_ND: npt.NDArray[np.floating], means: Mapping[str, float]
) -> dict[str, Interval]:
    """95 % intervals of `means`, treating both sets as random draws; none if a set has under 50 rows."""
    sets = [torch.from_numpy(finite_rows(rows)) for rows in (samples_ND, reference_MD)]
    counts = [len(rows) for rows in sets]
    if min(counts) < FEWEST:
        return {}
    share = max(ROWS_OF_A_GROUP / max(counts), FEWEST_OF_A_GROUP / min(counts))
    sizes = [round(min(share, 1 / GROUPS) * count) for count in counts]
    count = ROUNDS if max(sizes) <= MOST else ROUNDS_OF_MANY
    rounds = np.asarray([_round(sets, sizes, np.random.default_rng(seed)) for seed in range(count)])
    averages, variances = rounds.mean(axis=(0, 1)), rounds.var(axis=1, ddof=1).mean(axis=0)
    judged = {"precision": 0, "recall": 1, "coverage": 1}
    found = dict(zip(FIELDS, zip(averages, variances, strict=True), strict=True))
    intervals = {
        name: _share_interval(means[name], *found[name], sizes[which], counts[which])
        for name, which in judged.items()
    }
    return intervals | {"density": _density_interval(sets[0], sets[1], means["density"])}


def _share_interval(mean: float, average: float, variance: float, size: int, count: int) -> Interval:
    """Interval of a share; `average` and `variance` are those of draws of `size` rows, whose variance is at
    least that of independent results.
    """
    spread = average * (1 - average) / size
    return share_interval(mean, count / max(1.0, variance / spread) if spread > 0 else count, T_19)


def _density_interval(samples: Tensor, reference: Tensor, mean: float) -> Interval:
    share = min(1.0, MOST / max(len(samples), len(reference)))
    ones, others = (_some(rows, max(FEWEST, round(share * len(rows)))) for rows in (samples, reference))
    across, within = squared_distances(ones, others), _within(others)
    inside = (across <= _radii(within)[:, DENSITY_NEIGHBOURS - 1]).sum(1).double() / DENSITY_NEIGHBOURS
    left = []
    for block in torch.arange(len(others)).tensor_split(BLOCKS):
        kept = torch.ones(len(others), dtype=torch.bool).index_fill_(0, block, False)
        radii = _radii(within[kept][:, kept])[:, DENSITY_NEIGHBOURS - 1]
        left.append(float((across[:, kept] <= radii).sum(1).double().mean()) / DENSITY_NEIGHBOURS)
    # Both parts include the variance of rare (sample, ball) pairs, which equals their mean.
    pairs = float(inside.mean()) / DENSITY_NEIGHBOURS / len(ones)
    balls = max(0.0, jackknife_variance(left) - pairs) * len(others) / len(reference)
    half = T_19 * sqrt(float(inside.var()) / len(samples) + balls)
    return max(0.0, mean - half), mean + half


def _some(rows: Tensor, count: int) -> Tensor:
    return rows[torch.from_numpy(np.random.default_rng(0).permutation(len(rows))[:count])]


def _round(sets: list[Tensor], sizes: list[int], rng: np.random.Generator) -> Floats:
    """[groups, 4]: metrics of disjoint draws of both sets."""
    drawn = [
        rows[rng.permutation(len(rows))[: GROUPS * size]].split(size)
        for rows, size in zip(sets, sizes, strict=True)
    ]
    return np.asarray([_figures(*pair) for pair in zip(*drawn, strict=True)])


def _figures(samples: Tensor, reference: Tensor) -> list[float]:
    """Metrics in the order of `FIELDS`."""
    across = squared_distances(samples, reference)
    own, radii = (_radii(_within(rows)) for rows in (samples, reference))
    near = across <= radii[:, DENSITY_NEIGHBOURS - 1]
    found = (
        (across <= radii[:, NEIGHBOURS - 1]).any(1),
        (across <= own[:, NEIGHBOURS - 1, None]).any(0),
        near.sum(1) / DENSITY_NEIGHBOURS,
        near.any(0),
    )
    return [float(verdicts.double().mean()) for verdicts in found]


def _within(rows: Tensor) -> Tensor:
    return squared_distances(rows, rows).fill_diagonal_(torch.inf)


def _radii(within: Tensor) -> Tensor:
    return within.topk(DENSITY_NEIGHBOURS, dim=1, largest=False).values
