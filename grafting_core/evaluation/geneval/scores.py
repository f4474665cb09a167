"""Scores by task with 95 % intervals, and the paired comparison of two models.

Images of one prompt are not independent, so intervals come from a bootstrap over prompts. The overall score
is the unweighted mean of the tasks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import sqrt

import numpy as np
import numpy.typing as npt
from scipy.stats import t

from grafting_core.evaluation.metrics.intervals import Interval, Z, share_interval
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
    """Sums of values [P] and numbers of images [P] of a task's prompts."""

    sums: Floats
    images: Floats
    seed: int
    """Seed of the draws; tasks have different ones, since their prompts are independent."""

    @property
    def score(self) -> float:
        """Mean over images."""
        return float(self.sums.sum() / self.images.sum())

    @cached_property
    def draws(self) -> Floats:
        """Bootstrap draws [DRAWS] of the score."""
        if len(self.sums) == 1:
            return np.full(DRAWS, self.score)
        times = _times(len(self.sums), self.seed)
        drawn: Floats = (times @ self.sums) / (times @ self.images)
        return drawn

    def interval(self) -> Interval:
        """Wilson's interval for as many independent images as have the bootstrap's variance.

        A percentile interval is too narrow for shares near 0 and 1, where GenEval's easy tasks are.
        """
        prompts, images = len(self.sums), float(self.images.sum())
        variance, score = float(self.draws.var()), self.score
        independent = score * (1 - score) / variance if variance > 0 else float(prompts)
        return share_interval(score, min(max(independent, 1.0), images), _quantile(prompts))


@lru_cache(maxsize=2 * len(TASKS))
def _times(prompts: int, seed: int) -> Floats:
    """How often each draw takes each prompt [DRAWS, P]: one prompt less than there are, so that the variance
    of few prompts is not too small.
    """
    rng = np.random.default_rng(seed)
    return rng.multinomial(prompts - 1, np.full(prompts, 1 / prompts), size=DRAWS).astype(np.float64)


def task_scores(outcomes: Sequence[Outcome]) -> dict[str, TaskScore]:
    """Score, interval and sizes of every task that has images, in the official order."""
    scores = dict[str, TaskScore]()
    for task, clusters in _by_task(outcomes).items():
        images, prompts = int(clusters.images.sum()), len(clusters.sums)
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

    An image is compared with the baseline's image of the same prompt and number. Raises ValueError unless
    both have the same images.
    """
    own = {(one.prompt, one.number): one for one in outcomes}
    other = {(one.prompt, one.number): one for one in baseline}
    if own.keys() != other.keys():
        prompt, number = min(own.keys() ^ other.keys())
        raise ValueError(
            f"image {number} of prompt {prompt} exists for one model only; a paired comparison needs images "
            "of the same prompts and seeds"
        )
    pairs = [
        Outcome(one.task, one.prompt, one.number, one.value - other[key].value) for key, one in own.items()
    ]
    tasks = _by_task(pairs)
    differences = {
        task: _difference(clusters.score, clusters.draws, len(clusters.sums))
        for task, clusters in tasks.items()
    }
    if not complete:
        return PairedComparison(overall=None, tasks=differences)
    prompts = sum(len(clusters.sums) for clusters in tasks.values())
    mean = sum(clusters.score for clusters in tasks.values()) / len(tasks)
    draws: Floats = np.mean([clusters.draws for clusters in tasks.values()], axis=0)
    return PairedComparison(overall=_difference(mean, draws, prompts), tasks=differences)


def _difference(value: float, draws: Floats, prompts: int) -> Difference:
    """Percentile interval, wider by Student's quantile for the number of prompts."""
    low, high = value + _quantile(prompts) / Z * (np.percentile(draws, [LOW, HIGH]) - value)
    return Difference(difference=value, interval=(float(low), float(high)))


def _quantile(prompts: int) -> float:
    return float(t.ppf(HIGH / 100, max(prompts - 1, 1)))


def _by_task(outcomes: Sequence[Outcome]) -> dict[str, Clusters]:
    """Outcomes of each task by prompt, tasks in the official order and then in that of their first image."""
    sums: dict[str, dict[int, list[float]]] = {task: {} for task in TASKS}
    for outcome in outcomes:
        sums.setdefault(outcome.task, {}).setdefault(outcome.prompt, []).append(outcome.value)
    return {
        task: Clusters(
            np.array([sum(values) for values in prompts.values()], np.float64),
            np.array([len(values) for values in prompts.values()], np.float64),
            seed,
        )
        for seed, (task, prompts) in enumerate(sums.items())
        if prompts
    }
