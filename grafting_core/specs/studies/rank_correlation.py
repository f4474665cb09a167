"""Rank correlation of the fidelity ladder's rungs: does a cheap rung order models as a dear one does?"""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from itertools import combinations
from math import sqrt

from grafting_core.specs.base import Frozen
from grafting_core.specs.rungs import FidelityLadder

MODELS_NEEDED = 3
"""Two models always agree or disagree completely; a rank correlation says something from three on."""


class RungAgreement(Frozen):
    """How well two rungs rank the same models: Spearman's coefficient over `models` of them."""

    lower: str
    higher: str
    models: int
    correlation: float | None
    """None where fewer than three models have both, or one rung puts all of them level."""


def agreements(ladder: FidelityLadder, models: Sequence[Mapping[str, float]]) -> tuple[RungAgreement, ...]:
    """Every pair of rungs, compared over the models (metric name -> value) that have both numbers."""
    return tuple(_agreement(low, high, models) for low, high in combinations(ladder.metrics, 2))


def _agreement(low: str, high: str, models: Sequence[Mapping[str, float]]) -> RungAgreement:
    both = [(model[low], model[high]) for model in models if low in model and high in model]
    found = rank_correlation(*zip(*both, strict=True)) if len(both) >= MODELS_NEEDED else None
    return RungAgreement(lower=low, higher=high, models=len(both), correlation=found)


def rank_correlation(ones: Sequence[float], others: Sequence[float]) -> float | None:
    """Spearman's coefficient, ties at their mean rank; None where one side is constant."""
    first, second = _ranks(ones), _ranks(others)
    middle = (len(first) + 1) / 2
    product = sum((a - middle) * (b - middle) for a, b in zip(first, second, strict=True))
    spread = sum((a - middle) ** 2 for a in first) * sum((b - middle) ** 2 for b in second)
    return product / sqrt(spread) if spread else None


def _ranks(values: Sequence[float]) -> list[float]:
    """From 1, the mean of their places for values that are equal."""
    ordered = sorted(values)
    spans = {value: (bisect_left(ordered, value), bisect_right(ordered, value)) for value in ordered}
    return [spans[value][0] + (spans[value][1] - spans[value][0] + 1) / 2 for value in values]
