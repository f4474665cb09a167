"""Scores are means by task, their intervals cover the truth, and paired differences are told from chance."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest

from grafting_core.evaluation.geneval.scores import (
    Outcome,
    compare,
    overall_of,
    right_prompts,
    task_scores,
)
from grafting_core.specs.geneval import TASKS

Values = npt.NDArray[np.float64]
PROMPTS, IMAGES = 50, 4
MEANS = (0.97, 0.8, 0.45, 0.85, 0.2, 0.35)
"""Scores by task of the model that is simulated."""


def outcomes(values_TPI: Values, tasks: tuple[str, ...] = TASKS) -> list[Outcome]:
    return [
        Outcome(task, 1_000 * place + prompt, number, float(value))
        for place, task in enumerate(tasks)
        for prompt, row in enumerate(values_TPI[place])
        for number, value in enumerate(row)
    ]


def rates(rng: np.random.Generator, means: tuple[float, ...], spread: float = 3) -> Values:
    """Rates of right images by task and prompt: prompts differ, so that images of one agree."""
    return np.stack([rng.beta(spread * mean, spread * (1 - mean), PROMPTS) for mean in means])


def drawn(rng: np.random.Generator, rates_TP: Values) -> Values:
    return (rng.random((*rates_TP.shape, IMAGES)) < rates_TP[..., None]).astype(np.float64)


def test_a_task_is_the_mean_over_images_and_the_overall_score_the_mean_over_tasks() -> None:
    found = [
        *(Outcome("counting", 0, number, 1.0) for number in range(4)),
        *(Outcome("counting", 1, number, 0.0) for number in range(4)),
        Outcome("colors", 2, 0, 1.0),
        Outcome("colors", 2, 1, 0.0),
        Outcome("colors", 3, 0, 1.0),
    ]
    tasks = task_scores(found)
    assert {task: (score.score, score.images, score.prompts) for task, score in tasks.items()} == {
        "counting": (0.5, 8, 2),
        "colors": (2 / 3, 3, 2),
    }
    assert overall_of(tasks)[0] == pytest.approx((0.5 + 2 / 3) / 2)
    assert right_prompts(found) == 3 / 4


def test_published_rows_give_the_unweighted_mean() -> None:
    """SDXL's row: 0.98, 0.74, 0.39, 0.85, 0.15, 0.23 is 0.557 by task."""
    row = (0.98, 0.74, 0.39, 0.85, 0.15, 0.23)
    values = np.stack([np.repeat([1.0, 0.0], [int(100 * s), 100 - int(100 * s)]) for s in row])[..., None]
    assert overall_of(task_scores(outcomes(values)))[0] == pytest.approx(0.5566, abs=1e-3)


def test_images_that_agree_within_prompts_make_the_interval_wider() -> None:
    rng = np.random.default_rng(0)
    flips = (rng.random(PROMPTS) < 0.5).astype(np.float64)
    agreeing = np.repeat(flips[None, :, None], IMAGES, 2)
    mixed = rng.permutation(agreeing.ravel()).reshape(agreeing.shape)
    (together,) = task_scores(outcomes(agreeing, ("colors",))).values()
    (apart,) = task_scores(outcomes(mixed, ("colors",))).values()
    assert together.score == apart.score
    widths = [score.interval[1] - score.interval[0] for score in (together, apart)]
    assert 1.6 < widths[0] / widths[1] < 2.4


def test_a_task_without_an_error_has_an_interval_of_its_prompts_not_of_no_width() -> None:
    (task,) = task_scores(outcomes(np.ones((1, PROMPTS, IMAGES)), ("single_object",))).values()
    assert task.score == 1
    assert task.interval[1] == 1
    assert 0.88 < task.interval[0] < 0.95


def test_one_prompt_has_an_interval_that_says_nothing() -> None:
    (task,) = task_scores([Outcome("colors", 0, number, 1.0) for number in range(4)]).values()
    assert task.interval[0] < 0.05


def covered(draws: int, shrink: float = 1.0) -> Iterator[list[bool]]:
    """Whether the intervals of each task and of the overall score contain the truth, draw by draw."""
    rng = np.random.default_rng(3)
    for _ in range(draws):
        tasks = task_scores(outcomes(drawn(rng, rates(rng, MEANS))))
        score, interval = overall_of(tasks)
        found = [(task.score, task.interval) for task in tasks.values()] + [(score, interval)]
        truths = [*MEANS, sum(MEANS) / len(MEANS)]
        yield [
            value + shrink * (low - value) <= truth <= value + shrink * (high - value)
            for truth, (value, (low, high)) in zip(truths, found, strict=True)
        ]


def test_ninety_five_per_cent_of_the_intervals_contain_the_truth() -> None:
    """Of 150 draws at 95 %, fewer than 87 % are covered once in fifty thousand."""
    shares = np.mean(list(covered(150)), axis=0)
    assert shares.min() >= 0.87, shares
    halves = np.mean(list(covered(150, shrink=0.5)), axis=0)
    assert halves.max() <= 0.9, halves


def test_the_interval_of_a_paired_difference_contains_the_truth() -> None:
    rng, found = np.random.default_rng(4), list[list[bool]]()
    for _ in range(150):
        base = rates(rng, MEANS)
        worse = 0.8 * base
        truth = -0.2 * np.array(MEANS)
        result = compare(outcomes(drawn(rng, worse)), outcomes(drawn(rng, base)), complete=True)
        assert result.overall is not None
        pairs = [*zip(truth, result.tasks.values(), strict=True), (truth.mean(), result.overall)]
        found.append([one.interval[0] <= value <= one.interval[1] for value, one in pairs])
    shares = np.mean(found, axis=0)
    assert shares.min() >= 0.87, shares
    assert shares.mean() <= 0.985


def test_a_model_and_itself_cannot_be_told_apart() -> None:
    rng = np.random.default_rng(5)
    values = outcomes(drawn(rng, rates(rng, MEANS)))
    result = compare(values, values, complete=True)
    assert result.overall is not None
    assert (result.overall.difference, result.overall.verdict) == (0, "cannot be told apart")
    assert {one.verdict for one in result.tasks.values()} == {"cannot be told apart"}


def test_equal_models_with_other_errors_are_seldom_told_apart_and_a_worse_one_is() -> None:
    rng, verdicts = np.random.default_rng(6), list[str]()
    for _ in range(40):
        base = rates(rng, MEANS)
        result = compare(outcomes(drawn(rng, base)), outcomes(drawn(rng, base)), complete=True)
        assert result.overall is not None
        verdicts.append(result.overall.verdict)
    assert verdicts.count("cannot be told apart") >= 34
    worse = compare(outcomes(drawn(rng, base / 2)), outcomes(drawn(rng, base)), complete=True)
    better = compare(outcomes(drawn(rng, base)), outcomes(drawn(rng, base / 2)), complete=True)
    assert worse.overall is not None
    assert better.overall is not None
    assert (worse.overall.verdict, better.overall.verdict) == ("lower", "higher")


def test_pairing_narrows_the_interval_of_models_that_fail_at_the_same_prompts() -> None:
    rng = np.random.default_rng(7)
    base = rates(rng, MEANS, spread=0.3)
    first, second = (outcomes(drawn(rng, base)) for _ in range(2))
    paired = compare(first, second, complete=True).overall
    assert paired is not None
    half = (paired.interval[1] - paired.interval[0]) / 2
    alone = [overall_of(task_scores(each))[1] for each in (first, second)]
    unpaired = np.sqrt(sum(((high - low) / 2) ** 2 for low, high in alone))
    assert half < 0.6 * unpaired


def test_only_the_same_images_are_compared() -> None:
    rng = np.random.default_rng(8)
    values = outcomes(drawn(rng, rates(rng, MEANS)))
    with pytest.raises(ValueError, match="image 3 of prompt 5049 exists for one model only"):
        compare(values[:-1], values, complete=True)


def test_an_incomplete_set_has_no_overall_difference() -> None:
    rng = np.random.default_rng(9)
    values = outcomes(drawn(rng, rates(rng, MEANS)))
    assert compare(values, values, complete=False).overall is None


def test_shares_between_right_and_wrong_are_averaged_too() -> None:
    values = np.full((1, PROMPTS, 1), 0.25)
    values[0, ::2] = 0.75
    (task,) = task_scores(outcomes(values, ("colors",))).values()
    assert task.score == 0.5
    assert 0.36 < task.interval[0] < 0.5 < task.interval[1] < 0.64
