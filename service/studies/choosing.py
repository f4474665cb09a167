"""Which screened designs are finetuned: the best, by prediction where there is one, and a few spread out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from grafting_core.specs.rungs import Rung
from grafting_core.specs.studies.selection import select


@dataclass(frozen=True)
class Candidate:
    """A screened trial that has not been finetuned."""

    number: int
    screened: Mapping[str, float]
    costs: tuple[float, ...]
    predicted: float | None


def promoted(candidates: Sequence[Candidate], rungs: Sequence[Rung], count: int) -> list[int]:
    """Trial numbers of the best: highest rung first, then by front of (quality, costs) on that rung."""
    chosen: list[int] = []
    for rung in reversed(rungs):
        remaining = [
            each for each in candidates if rung.metric in each.screened and each.number not in chosen
        ]
        if not remaining:
            continue
        points = [(_quality(each, rung.metric, remaining), *each.costs) for each in remaining]
        chosen += [remaining[at].number for at in select(points, count - len(chosen))]
    return chosen[:count]


def _quality(candidate: Candidate, metric: str, run_periodically: Sequence[Candidate]) -> float:
    """The prediction if all have one, else the rung's number."""
    if all(each.predicted is not None for each in run_periodically):
        assert candidate.predicted is not None
        return candidate.predicted
    return candidate.screened[metric]


def spread(candidates: Sequence[Candidate], metric: str, count: int) -> list[int]:
    """Numbers of `count` trials at even steps of the first rung's ranking, from best to worst."""
    ranked = sorted(
        (each for each in candidates if metric in each.screened), key=lambda e: e.screened[metric]
    )
    if count <= 0 or not ranked:
        return []
    if len(ranked) <= count:
        return [each.number for each in ranked]
    steps = [round(at * (len(ranked) - 1) / max(1, count - 1)) for at in range(count)]
    return [ranked[at].number for at in dict.fromkeys(steps)]
