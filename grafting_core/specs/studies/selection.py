"""Select the best: by one value, or by several with non-dominated sorting and crowding distance (NSGA-II)."""

from collections.abc import Sequence
from math import inf

Point = Sequence[float]
"""All objectives of one candidate, each the smaller the better."""


def fronts(points: Sequence[Point]) -> list[list[int]]:
    """Indices by front: the first is dominated by nobody, the second by the first alone, and so on."""
    left, found = list(range(len(points))), []
    while left:
        front = [one for one in left if not any(_dominates(points[other], points[one]) for other in left)]
        found.append(front)
        left = [one for one in left if one not in front]
    return found


def select(points: Sequence[Point], count: int) -> list[int]:
    """The best `count` indices: front by front, within one those that stand most apart; of equals the first.

    With one objective this is the order of its values.
    """
    ranked = [index for front in fronts(points) for index in _apart(front, points)]
    return ranked[: max(0, count)]


def _dominates(one: Point, other: Point) -> bool:
    no_worse = all(a <= b for a, b in zip(one, other, strict=True))
    return no_worse and any(a < b for a, b in zip(one, other, strict=True))


def _apart(front: list[int], points: Sequence[Point]) -> list[int]:
    """By crowding distance (NSGA-II), the ends of each objective first."""
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
