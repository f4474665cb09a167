"""Integer program that proposes designs: additive scores, cost limits, every site covered exactly once.

A grouped knapsack as in Puzzle (arXiv 2411.19146), with items that may span layers as in ModelOpt.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array, vstack

from grafting_core.specs.studies.space import Cost, Item, Space
from grafting_core.specs.studies.study import Limit

Floats = npt.NDArray[np.float64]
Chosen = tuple[Item, ...]
SLACK = 1e-6
"""Tolerance of HiGHS relative to a limit; a design that exceeds the limit within it is solved again."""


class NoDesign(Exception):
    """No design of the space meets the limits."""


@dataclass(frozen=True)
class Proposer:
    """Finds the feasible design of least total score. Items without a score count 0."""

    space: Space
    scores: Mapping[str, float]
    limits: tuple[Limit, ...] = ()
    _sites: dict[object, int] = field(init=False)

    def __post_init__(self) -> None:
        sites = {site for item in self.space.items for site in item.sites}
        object.__setattr__(self, "_sites", {site: row for row, site in enumerate(sorted(sites, key=str))})

    def best(self, apart: Sequence[Chosen] = (), distance: int = 1) -> Chosen:
        """Best design that differs from each of `apart` in at least `distance` items.

        Raises NoDesign if there is none.
        """
        return self._solve(self._costs_of(self.scores), apart, distance)

    def nearest(self, target: Chosen) -> Chosen:
        """Feasible design that shares most sites with `target`; ties go to the least score."""
        scores = self._costs_of(self.scores)
        keys = {item.key for item in target}
        shared = np.array([len(item.sites) if item.key in keys else 0.0 for item in self.space.items])
        tie = scores / (1e3 * (np.abs(scores).sum() or 1.0))
        return self._solve(tie - shared, (), 1)

    def least(self, cost: Cost) -> Chosen:
        """Feasible design of least `cost`."""
        return self._solve(self._amounts(cost), (), 1)

    def sweep(self, cost: Cost, points: int) -> list[Chosen]:
        """Pareto front of total score against `cost` at up to `points` levels, cheapest first."""
        low, high = (self.space.total(cost, chosen) for chosen in (self.least(cost), self.best()))
        front: dict[tuple[str, ...], Chosen] = {}
        for level in np.linspace(low, max(low, high), points):
            bound = Limit(cost=cost, at_most=float(level), of_backbone=1.0)
            chosen = Proposer(self.space, self.scores, (*self.limits, bound)).best()
            front.setdefault(tuple(item.key for item in chosen), chosen)
        return list(front.values())

    def meets(self, chosen: Chosen) -> bool:
        """Whether a design meets every limit exactly, without tolerance."""
        return all(self.space.total(limit.cost, chosen) <= limit.at_most for limit in self.limits)

    def score(self, chosen: Chosen) -> float:
        return sum(self.scores.get(item.key, 0.0) for item in chosen)

    def _costs_of(self, scores: Mapping[str, float]) -> Floats:
        return np.array([scores.get(item.key, 0.0) for item in self.space.items])

    def _amounts(self, cost: Cost) -> Floats:
        return np.array([getattr(item, cost) for item in self.space.items], dtype=np.float64)

    def _solve(self, objective: Floats, apart: Sequence[Chosen], distance: int) -> Chosen:
        for margin in (0.0, SLACK, 10 * SLACK):
            chosen = self._solved(objective, apart, distance, margin)
            if self.meets(chosen):
                return chosen
        raise NoDesign("no design meets the limits exactly, only within rounding errors")

    def _solved(self, objective: Floats, apart: Sequence[Chosen], distance: int, margin: float) -> Chosen:
        scale = np.abs(objective).max() or 1.0
        solution = milp(
            objective / scale,
            integrality=np.ones(len(objective)),
            bounds=Bounds(0, 1),
            constraints=[self._coverage(), *self._limited(margin), *self._apart(apart, distance)],
            options={"mip_rel_gap": 0.0},
        )
        if solution.x is None:
            raise NoDesign(solution.message)
        return tuple(item for item, taken in zip(self.space.items, solution.x, strict=True) if taken > 0.5)

    def _coverage(self) -> LinearConstraint:
        """Constraint: every site of the space is covered by exactly one item."""
        rows, columns = zip(
            *((self._sites[site], at) for at, item in enumerate(self.space.items) for site in item.sites),
            strict=True,
        )
        shape = (len(self._sites), len(self.space.items))
        return LinearConstraint(csr_array((np.ones(len(rows)), (rows, columns)), shape=shape), 1, 1)

    def _limited(self, margin: float) -> Iterator[LinearConstraint]:
        for limit in self.limits:
            base = self.space.base(limit.cost)
            amounts = self._amounts(limit.cost) / base
            yield LinearConstraint(amounts[None], ub=limit.at_most / base - 1 - margin)

    def _apart(self, designs: Sequence[Chosen], distance: int) -> Iterator[LinearConstraint]:
        if not designs:
            return
        keys = [{item.key for item in design} for design in designs]
        rows = [np.array([item.key in own for item in self.space.items], dtype=np.float64) for own in keys]
        bound = [len(own) - distance for own in keys]
        yield LinearConstraint(vstack([csr_array(row[None]) for row in rows]), ub=bound)
