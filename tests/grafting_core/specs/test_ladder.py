"""Rungs by their own names; agreement between them as Spearman has it."""

import pytest
from scipy.stats import spearmanr

from grafting_core.specs.plans import EvaluationProtocol
from grafting_core.specs.rungs import FidRung, LossGapRung, comparable_digest, ladder_of, rung_cost
from grafting_core.specs.studies.rank_correlation import agreements, rank_correlation


def test_one_evaluation_yields_every_rung_below_it() -> None:
    assert ladder_of(EvaluationProtocol(mode="adm")).metrics == (
        "loss_gap",
        "fid1k/inception/adm",
        "fid10k/inception/adm",
        "fid50k/inception/adm",
    )
    assert ladder_of(EvaluationProtocol(samples=40)).metrics == ("loss_gap", "fid40/inception")


def test_rungs_grow_dearer() -> None:
    costs = [rung_cost(rung, 10, 200) for rung in ladder_of(EvaluationProtocol()).rungs]
    assert costs == sorted(costs)
    assert costs[0] == LossGapRung().draws * 10


def test_protocols_that_differ_in_count_alone_share_their_rungs() -> None:
    short, long = EvaluationProtocol(samples=1_000), EvaluationProtocol(samples=10_000)
    assert comparable_digest("b", short) == comparable_digest("b", long)
    assert comparable_digest("b", short) != comparable_digest("b", short.model_copy(update={"seed": 1}))
    assert FidRung(samples=1_000, feature_network="inception").metric == short.fid_name


@pytest.mark.parametrize("others", [[1, 2, 3, 4], [4, 3, 2, 1], [1, 1, 2, 2], [3.5, -1, 3.5, 0]])
def test_rank_correlation_is_scipys(others: list[float]) -> None:
    ones = [0.1, 0.7, 0.3, 0.3]
    assert rank_correlation(ones, others) == pytest.approx(spearmanr(ones, others).statistic)


def test_no_correlation_is_claimed_of_too_few_models_or_level_ones() -> None:
    models = [{"loss_gap": 0.1, "fid40/inception": 3.0}, {"loss_gap": 0.2, "fid40/inception": 4.0}]
    ladder = ladder_of(EvaluationProtocol(samples=40))
    assert agreements(ladder, models)[0].correlation is None
    third = [*models, {"loss_gap": 0.3, "fid40/inception": 5.0}, {"loss_gap": 9.0}]
    found = agreements(ladder, third)[0]
    assert (found.models, found.correlation) == (3, 1.0)
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None
