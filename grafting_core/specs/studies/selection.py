"""Select the best: by one value, or by several with non-dominated sorting and crowding distance (NSGA-II)."""

from collections.abc import Sequence
from math import inf

Point = Sequence[float]
"""All objectives of one candidate; smaller is better."""


def fronts(points: Sequence[Point]) -> list[list[int]]:
    """Indices by front: the first is not dominated at all, the second only by the first, and so on."""
    remaining, ordered = list(range(len(points))), []
    while remaining:
        front = [i for i in remaining if not any(_dominates(points[j], points[i]) for j in remaining)]
        ordered.append(front)
        remaining = [i for i in remaining if i not in front]
    return ordered


def select(points: Sequence[Point], count: int) -> list[int]:
    """Best `count` indices: front by front, within a front by crowding distance; ties go to the first.

    With one objective this is the order of its values.
    """
    ranked = [index for front in fronts(points) for index in _by_crowding(front, points)]
    return ranked[: max(0, count)]


def _dominates(first: Point, second: Point) -> bool:
    no_worse = all(a <= b for a, b in zip(first, second, strict=True))
    return no_worse and any(a < b for a, b in zip(first, second, strict=True))


def _by_crowding(front: list[int], points: Sequence[Point]) -> list[int]:
    """Sort a front by crowding distance (NSGA-II); the ends of each objective come first."""
    distance = dict.fromkeys(front, 0.0)
    for objective in range(len(points[front[0]])):
        order = sorted(front, key=lambda index: (points[index][objective], index))
        low, high = points[order[0]][objective], points[order[-1]][objective]
        for at, index in enumerate(order):
            if at in (0, len(order) - 1) or high == low:
                distance[index] += inf if at in (0, len(order) - 1) else 0.0
                continue
            around = points[order[at + 1]][objective] - points[order[at - 1]][objective]
            distance[index] += around / (high - low)
    return sorted(front, key=lambda index: (-distance[index], index))
