"""What every metric must do whatever its formula: limits, orientation, invariances, honest intervals."""

import numpy as np
import pytest

from grafting_core.evaluation.metrics.adm import adm_precision_recall, half_distances
from grafting_core.evaluation.metrics.fid_infinity import fid_infinity
from grafting_core.evaluation.metrics.frechet import (
    Gaussian,
    frechet_distance,
    frechet_influence,
    frechet_of_rows,
)
from grafting_core.evaluation.metrics.inception_score import adm_inception_score, inception_score
from grafting_core.evaluation.metrics.intervals import frechet_interval, label_interval
from grafting_core.evaluation.metrics.kid import kernel_distance, kernel_interval
from grafting_core.evaluation.metrics.moments import Moments
from grafting_core.evaluation.metrics.prdc import Manifold, overlap
from tests.support.feature_sets import features

RNG = np.random.default_rng(0)


def test_inception_score_is_between_one_and_the_number_of_classes() -> None:
    certain = np.eye(8)[np.arange(800) % 8] * 1e4
    assert 7 < inception_score(certain) <= 8
    assert inception_score(certain, shuffle_seed=None) == pytest.approx(8, rel=1e-12)
    assert inception_score(np.zeros((50, 8))) == pytest.approx(1, abs=1e-12)
    assert 1 <= inception_score(RNG.normal(size=(200, 8))) <= 8


def test_samples_sorted_by_class_fool_adms_blocks_but_not_the_shuffled_score() -> None:
    certain = np.repeat(np.eye(10) * 20, 1_000, axis=0)
    assert adm_inception_score(certain) < 6
    assert inception_score(certain) > 9.5


def test_adms_score_is_not_a_number_where_a_probability_underflows() -> None:
    assert np.isnan(adm_inception_score(np.eye(8)[np.arange(80) % 8] * 1e4))


def test_collapse_costs_recall_and_invention_costs_precision() -> None:
    real = RNG.normal(size=(300, 4))
    collapsed = real[:10].repeat(30, axis=0) + 1e-6 * RNG.normal(size=(300, 4))
    found = overlap(Manifold.of(real), Manifold.of(collapsed)).means
    assert found["precision"] > 0.95
    assert found["recall"] < 0.1
    assert found["coverage"] < 0.4
    invented = np.concatenate([real, RNG.normal(size=(300, 4)) + 50])
    found = overlap(Manifold.of(real), Manifold.of(invented)).means
    assert found["precision"] == pytest.approx(0.5, abs=0.01)
    assert found["recall"] > 0.95
    assert adm_precision_recall(real, collapsed)[0] > 0.9
    assert adm_precision_recall(real, collapsed)[1] < 0.2


def test_verdicts_depend_neither_on_blocks_nor_on_order() -> None:
    real, made = features(150, 6), features(130, 6, seed=1)
    whole = overlap(Manifold.of(real), Manifold.of(made))
    order = RNG.permutation(130)
    blocks = overlap(Manifold.of(real, block=17), Manifold.of(made[order], block=29), block=31)
    assert np.array_equal(whole.precision[order], blocks.precision)
    assert np.array_equal(whole.density[order], blocks.density)
    assert np.array_equal(whole.recall, blocks.recall)
    assert np.array_equal(whole.coverage, blocks.coverage)


def test_density_of_the_reference_itself_is_near_one() -> None:
    found = overlap(Manifold.of(RNG.normal(size=(800, 4))), Manifold.of(RNG.normal(size=(800, 4)))).means
    assert found["density"] == pytest.approx(1, abs=0.1)
    assert found["coverage"] > 0.9


def test_half_distances_that_overflow_are_made_again_in_single() -> None:
    ones = np.full((3, 4), 300, np.float32)
    found = half_distances(ones, ones + 1)
    assert np.allclose(found, 4, atol=0.2)


def test_fid_of_the_true_distribution_extrapolates_to_nothing() -> None:
    dims = 24
    truth = Gaussian(np.zeros(dims), np.eye(dims))
    rows = RNG.normal(size=(6_000, dims))
    found = fid_infinity(truth, rows)
    assert frechet_of_rows(truth, rows[:600]) > 0.2
    assert abs(found.value) < 0.02
    assert found.counts[-1] == 6_000


def test_an_interval_covers_what_another_draw_gives() -> None:
    reference = Gaussian.of(Moments.of(features(4_000, 8)))
    shift = features(4_000, 8)[:, :1] * 0
    draws = [RNG.normal(size=(1_000, 8)) * 2 + shift[:1_000] for _ in range(20)]
    values = [frechet_of_rows(reference, rows) for rows in draws]
    inside = 0
    for rows, value in zip(draws, values, strict=True):
        low, high = frechet_interval(reference, rows, value)
        inside += low <= np.mean(values) <= high
    assert inside >= 17


def test_an_interval_below_full_rank_is_one_too() -> None:
    reference, rows = Gaussian.of(Moments.of(features(400, 32))), features(30, 32, seed=2)
    low, high = frechet_interval(reference, rows, frechet_of_rows(reference, rows))
    assert low < frechet_of_rows(reference, rows) < high


def test_the_interval_of_verdicts_is_the_binomial_one() -> None:
    low, high = label_interval(np.arange(1_000) < 800)
    assert (low, high) == pytest.approx((0.775, 0.825), abs=0.004)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frechet_of_rows(Gaussian(np.zeros(3), np.eye(3)), np.zeros((1, 3))), "at least 2 samples"),
        (lambda: frechet_of_rows(Gaussian(np.zeros(3), np.eye(3)), np.zeros((9, 4))), "3 and 4 features"),
        (lambda: kernel_distance(np.zeros((1, 3)), np.zeros((9, 3))), "at least 2 samples"),
        (lambda: Manifold.of(np.zeros((5, 3))), "at least 6 samples"),
        (lambda: inception_score(np.zeros((9, 3))), "as many samples"),
        (lambda: fid_infinity(Gaussian(np.zeros(3), np.eye(3)), np.zeros((9, 3))), "needs 20 samples"),
        (lambda: Manifold.of(np.full((9, 3), np.nan)), r"samples \[0, 1"),
    ],
)
def test_too_little_is_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("spread", [1.0, 1e-3, 0.0])
def test_verdicts_are_those_of_float64_however_close_the_distances(spread: float) -> None:
    """Rows far from the origin and close to each other leave float32 next to nothing to go by."""
    generator = np.random.default_rng(3)
    rows = [1.0 + spread * generator.normal(size=(count, 24)) for count in (70, 90)]
    reference, samples = (Manifold.of(each, block=32) for each in rows)
    for manifold in (reference, samples):
        between = ((manifold.rows[:, None] - manifold.rows) ** 2).sum(2).fill_diagonal_(np.inf)
        wanted = between.sort(dim=1).values[:, :5]
        assert np.allclose(manifold.nearest, wanted, rtol=1e-9, atol=1e-12)
    found = overlap(reference, samples, block=32)
    across = ((samples.rows[:, None] - reference.rows) ** 2).sum(2)
    assert (found.precision == (across <= reference.radii(3)).any(dim=1).numpy()).all()
    assert (found.recall == (across <= samples.radii(3)[:, None]).any(dim=0).numpy()).all()
    assert (found.density == (across <= reference.radii(5)).sum(dim=1).numpy() / 5).all()
    assert (found.coverage == (across <= reference.radii(5)).any(dim=0).numpy()).all()


def test_density_of_a_set_against_itself_is_exact() -> None:
    """Every row lies in its own ball, and in those of the five rows a neighbour on: six of five."""
    for name in ("even", "uneven"):
        rows = features(500, 64) if name == "even" else np.abs(RNG.normal(size=(500, 64))).astype(np.float32)
        manifold = Manifold.of(rows, block=64)
        assert overlap(manifold, manifold, block=96).density.mean() == pytest.approx(1.2, abs=1e-12)


def test_the_influence_of_a_row_is_the_derivative_of_the_distance() -> None:
    for count in (60, 20):
        reference, rows = Gaussian.of(Moments.of(features(400, 24))), features(count, 24, seed=3)
        influence = frechet_influence(reference, rows).rows
        weights, step = np.random.default_rng(4).normal(size=count), 1e-4
        centred = weights - weights.mean()

        def weighted(by: float, reference=reference, rows=rows, centred=centred, count=count) -> float:
            """The distance of rows of unequal weights, by the textbook formula."""
            shares = (1 + by * centred) / count
            mean = shares @ rows
            around = rows - mean
            covariance = (around * shares[:, None]).T @ around * count / (count - 1)
            return frechet_distance(reference, Gaussian(mean, covariance))

        slope = (weighted(step) - weighted(-step)) / (2 * step)
        assert slope == pytest.approx(influence @ centred / count, rel=1e-3)


def test_kid_has_the_variance_that_its_interval_is_made_of() -> None:
    rng, found, halves = np.random.default_rng(0), [], []
    for _ in range(150):
        ones, others = rng.normal(size=(80, 6)), rng.normal(size=(50, 6)) * 1.1
        found.append(kernel_distance(ones, others, 25))
        low, high = kernel_interval(ones, others, found[-1], 25)
        halves.append((high - low) / 2 / 2.01)
    assert np.sqrt(np.mean(np.square(halves))) == pytest.approx(np.std(found), rel=0.35)
