"""Rank correlation of the fidelity ladder's rungs: do cheap rungs rank models as expensive ones do?"""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from itertools import combinations
from math import sqrt

from grafting_core.specs.base import Frozen
from grafting_core.specs.private_names import MetricName
from grafting_core.specs.rungs import FidelityLadder

MODELS_NEEDED = 3
"""Minimum number of models: the ranks of two models always agree or disagree completely."""


class RungAgreement(Frozen):
    """Agreement of two rungs in ranking the same models: Spearman's coefficient over `models` of them."""

    lower: MetricName
    higher: MetricName
    models: int
    correlation: float | None
    """None if fewer than three models have both values, or one rung gives all of them the same."""


def agreements(ladder: FidelityLadder, models: Sequence[Mapping[str, float]]) -> tuple[RungAgreement, ...]:
    """Every pair of rungs, compared over the models (metric name -> value) that have both values."""
    return tuple(_agreement(low, high, models) for low, high in combinations(ladder.metrics, 2))


def _agreement(low: str, high: str, models: Sequence[Mapping[str, float]]) -> RungAgreement:
    both = [(model[low], model[high]) for model in models if low in model and high in model]
    correlation = rank_correlation(*zip(*both, strict=True)) if len(both) >= MODELS_NEEDED else None
    return RungAgreement(lower=low, higher=high, models=len(both), correlation=correlation)


def rank_correlation(first_values: Sequence[float], second_values: Sequence[float]) -> float | None:
    """Spearman's coefficient; ties get their mean rank. None if one side is constant."""
    first, second = _ranks(first_values), _ranks(second_values)
    middle = (len(first) + 1) / 2
    product = sum((a - middle) * (b - middle) for a, b in zip(first, second, strict=True))
    spread = sum((a - middle) ** 2 for a in first) * sum((b - middle) ** 2 for b in second)
    return product / sqrt(spread) if spread else None


def _ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1; equal values get the mean of their ranks."""
    ordered = sorted(values)
    spans = {value: (bisect_left(ordered, value), bisect_right(ordered, value)) for value in ordered}
    return [spans[value][0] + (spans[value][1] - spans[value][0] + 1) / 2 for value in values]
