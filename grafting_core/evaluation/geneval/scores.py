"""Scores by task with 95 % intervals, and the paired comparison of two models.

Images of one prompt are not independent, so intervals come from a bootstrap over prompts. The overall score is
the unweighted mean of the tasks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import sqrt

import numpy as np
import numpy.typing as npt
from scipy.stats import t

from grafting_core.evaluation.metrics.intervals import Interval, share_interval
from grafting_core.specs.geneval import TASKS, Difference, PairedComparison, TaskScore

Floats = npt.NDArray[np.float64]
DRAWS = 4_000
LOW, HIGH = 2.5, 97.5


@dataclass(frozen=True)
class Outcome:
    """Result for one image: 1 if it is right, 0 if not, or a share between them."""

    task: str
    prompt: int
    number: int
    value: float


@dataclass(frozen=True)
class Clusters:
    """Sums of values and numbers of images, one row a prompt."""

    sums_P: Floats
    images_P: Floats

    @property
    def score(self) -> float:
        """Mean over images."""
        return float(self.sums_P.sum() / self.images_P.sum())

    @cached_property
    def draws(self) -> Floats:
        """Bootstrap draws of the score; each draws one prompt less than there are, so that the variance of
        few prompts is not too small.
        """
        prompts = len(self.sums_P)
        if prompts == 1:
            return np.full(DRAWS, self.score)
        rng = np.random.default_rng(0)
        times = rng.multinomial(prompts - 1, np.full(prompts, 1 / prompts), size=DRAWS)
        drawn: Floats = (times @ self.sums_P) / (times @ self.images_P)
        return drawn

    def interval(self) -> Interval:
        """Wilson's interval for as many independent images as have the bootstrap's variance.

        A percentile interval is too narrow for shares near 0 and 1, where GenEval's easy tasks are.
        """
        prompts, images = len(self.sums_P), float(self.images_P.sum())
        variance, score = float(self.draws.var()), self.score
        independent = score * (1 - score) / variance if variance > 0 else float(prompts)
        quantile = float(t.ppf(HIGH / 100, max(prompts - 1, 1)))
        return share_interval(score, min(max(independent, 1.0), images), quantile)


def task_scores(outcomes: Sequence[Outcome]) -> dict[str, TaskScore]:
    """Score, interval and sizes of every task that has images, in the official order."""
    scores = dict[str, TaskScore]()
    for task, clusters in _by_task(outcomes).items():
        images, prompts = int(clusters.images_P.sum()), len(clusters.sums_P)
        scores[task] = TaskScore(
            score=clusters.score, interval=clusters.interval(), images=images, prompts=prompts
        )
    return scores


def overall_of(tasks: Mapping[str, TaskScore]) -> tuple[float, Interval]:
    """Unweighted mean of the tasks, and its interval from those of the tasks (Zou and Donner 2008).

    The tasks have different prompts, so their deviations are independent.
    """
    score = sum(task.score for task in tasks.values()) / len(tasks)
    below = sqrt(sum((task.score - task.interval[0]) ** 2 for task in tasks.values())) / len(tasks)
    above = sqrt(sum((task.interval[1] - task.score) ** 2 for task in tasks.values())) / len(tasks)
    return score, (score - below, score + above)


def right_prompts(outcomes: Sequence[Outcome]) -> float:
    """Share of prompts with at least one image that is right."""
    best = dict[int, float]()
    for outcome in outcomes:
        best[outcome.prompt] = max(best.get(outcome.prompt, 0.0), outcome.value)
    return sum(value == 1 for value in best.values()) / len(best)


def compare(outcomes: Sequence[Outcome], baseline: Sequence[Outcome], complete: bool) -> PairedComparison:
    """Differences of two models by task, and overall if the sets are complete.

    An image is compared with the baseline's image of the same prompt and number. Raises ValueError unless both
    have the same images.
    """
    own = {(one.prompt, one.number): one for one in outcomes}
    other = {(one.prompt, one.number): one for one in baseline}
    if own.keys() != other.keys():
        prompt, number = min(own.keys() ^ other.keys())
        raise ValueError(
            f"image {number} of prompt {prompt} exists for one model only; a paired comparison needs the same "
            "images of both, made with the same seeds"
        )
    pairs = [
        Outcome(one.task, one.prompt, one.number, one.value - other[key].value) for key, one in own.items()
    ]
    tasks = _by_task(pairs)
    differences = {task: _difference(clusters.score, clusters.draws) for task, clusters in tasks.items()}
    if not complete:
        return PairedComparison(overall=None, tasks=differences)
    # Tasks have prompts of their own; the seeds of their draws must differ to be independent.
    draws = [np.roll(clusters.draws, 613 * place) for place, clusters in enumerate(tasks.values())]
    mean = sum(clusters.score for clusters in tasks.values()) / len(tasks)
    return PairedComparison(overall=_difference(mean, np.mean(draws, axis=0)), tasks=differences)


def _difference(value: float, draws: Floats) -> Difference:
    low, high = np.percentile(draws, [LOW, HIGH])
    return Difference(difference=value, interval=(float(low), float(high)))


def _by_task(outcomes: Sequence[Outcome]) -> dict[str, Clusters]:
    """Outcomes of each task by prompt, tasks in the official order and then in that of their first image."""
    sums: dict[str, dict[int, list[float]]] = {task: {} for task in TASKS}
    for outcome in outcomes:
        sums.setdefault(outcome.task, {}).setdefault(outcome.prompt, []).append(outcome.value)
    return {
        task: Clusters(
            np.array([sum(values) for values in prompts.values()], np.float64),
            np.array([len(values) for values in prompts.values()], np.float64),
        )
        for task, prompts in sums.items()
        if prompts
    }
