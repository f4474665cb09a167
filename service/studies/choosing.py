"""Choose the screened designs to finetune: the best, by prediction if there is one, and a spread of
others.
"""

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
    """Return the trial numbers of the best: highest rung first, then by front of (quality, costs) on that
    rung.
    """
    chosen: list[int] = []
    for rung in reversed(rungs):
        remaining = [
            trial for trial in candidates if rung.metric in trial.screened and trial.number not in chosen
        ]
        if not remaining:
            continue
        points = [(_quality(trial, rung.metric, remaining), *trial.costs) for trial in remaining]
        chosen += [remaining[at].number for at in select(points, count - len(chosen))]
    return chosen[:count]


def _quality(candidate: Candidate, metric: str, candidates: Sequence[Candidate]) -> float:
    """Return the prediction if all candidates have one, else the rung's metric."""
    if all(other.predicted is not None for other in candidates):
        assert candidate.predicted is not None
        return candidate.predicted
    return candidate.screened[metric]


def spread(candidates: Sequence[Candidate], metric: str, count: int) -> list[int]:
    """Return the numbers of `count` trials at even steps of the first rung's ranking, from best to worst."""
    ranked = sorted(
        (trial for trial in candidates if metric in trial.screened), key=lambda t: t.screened[metric]
    )
    if count <= 0 or not ranked:
        return []
    if len(ranked) <= count:
        return [trial.number for trial in ranked]
    steps = [round(at * (len(ranked) - 1) / max(1, count - 1)) for at in range(count)]
    return [ranked[at].number for at in dict.fromkeys(steps)]
