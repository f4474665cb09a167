"""The integer program finds what exhaustive search finds, and says where there is nothing to find."""

import itertools
import random

import pytest

from grafting_core.specs.documents.errors import SpecError
from grafting_core.specs.studies.integer_program import Chosen, Proposer
from grafting_core.specs.studies.space import Space
from grafting_core.specs.studies.study import StudySpec
from service.domain.study_feasibility import parse_feasible_study
from tests.support.builders import study_document

SIX = {
    "attention": ["keep", "hyena_x", {"kind": "window_attention", "half_width": 2}],
    "groups": {"attention": [[0], [1], [2], [3], [4], [5]]},
}


def opened(**changes: object) -> StudySpec:
    return parse_feasible_study(study_document(**changes))


def random_scores(space: Space, seed: int = 0) -> dict[str, float]:
    draw = random.Random(seed)
    return {item.key: draw.random() for item in space.items if not item.is_keep}


def exhaustive(proposer: Proposer) -> float:
    choices = [variable.items for variable in proposer.space.variables]
    return min(proposer.score(mix) for mix in itertools.product(*choices) if proposer.meets(mix))


@pytest.mark.parametrize("share", [1.0, 0.97, 0.95])
def test_the_optimum_is_that_of_all_729_mixes(share: float) -> None:
    spec = opened(space=SIX, limits={"flops": f"<= {share}x"})
    assert spec.space.size == 729
    proposer = Proposer(spec.space, random_scores(spec.space), spec.limits)
    best = proposer.best()
    assert proposer.meets(best)
    assert proposer.score(best) == pytest.approx(exhaustive(proposer), abs=1e-9)


def test_a_pair_covers_all_sites_of_two_blocks_once() -> None:
    spec = opened(space={**SIX, "parallel_pairs": "optional"})
    scores = {item.key: 1.0 for item in spec.space.items if item.pair is None}
    best = Proposer(spec.space, scores).best()
    assert [str(item.pair) for item in best if item.pair] == ["pair 0+1", "pair 2+3", "pair 4+5", "pair 6+7"]
    sites = [site for item in best for site in item.sites]
    assert len(sites) == len(set(sites)) == 16


def test_proposals_differ_by_the_distance_asked_for() -> None:
    spec = opened(space=SIX)
    proposer = Proposer(spec.space, random_scores(spec.space))
    found: list[Chosen] = []
    for _ in range(8):
        found.append(proposer.best(found, distance=3))
    for one, other in itertools.combinations(found, 2):
        assert len({item.key for item in one} - {item.key for item in other}) >= 3


def test_a_sweep_gives_better_scores_for_more_flops() -> None:
    spec = opened(space=SIX)
    proposer = Proposer(spec.space, random_scores(spec.space))
    front = proposer.sweep("flops", 8)
    scores, flops = [proposer.score(each) for each in front], [spec.space.flops(each) for each in front]
    assert scores == sorted(scores, reverse=True)
    assert flops == sorted(flops)
    assert len(front) > 2


def test_what_breaks_a_limit_is_mended_with_the_fewest_changes() -> None:
    spec = opened(space=SIX, limits={"flops": "<= 0.97x"})
    proposer = Proposer(spec.space, {}, spec.limits)
    wanted = tuple(variable.items[0] for variable in spec.space.variables)
    kept = {item.key for item in proposer.nearest(wanted)} & {item.key for item in wanted}
    best = max(
        len({item.key for item in mix} & {item.key for item in wanted})
        for mix in itertools.product(*(variable.items for variable in spec.space.variables))
        if proposer.meets(mix)
    )
    assert len(kept) == best


def test_impossible_limits_are_reported_with_the_nearest_possible_one() -> None:
    with pytest.raises(SpecError) as refused:
        opened(space=SIX, limits={"flops": "<= 0.5x"})
    (problem,) = refused.value.problems
    assert (problem.pointer, problem.code) == ("/limits/flops", "infeasible")
    assert opened(space=SIX, limits={"flops": problem.allowed[0]})


def test_limits_that_exclude_each_other_are_found_together() -> None:
    space = {"attention": ["hyena_se", "linear_attention"]}
    spec = opened(space=space)
    proposer = Proposer(spec.space, {})
    params = spec.space.params(proposer.least("params"))
    flops = spec.space.flops(proposer.least("flops"))
    opened(space=space, limits={"params": params})
    opened(space=space, limits={"flops": flops})
    with pytest.raises(SpecError, match="no design meets this with params <= "):
        opened(space=space, limits={"params": params, "flops": flops})


def test_56_sites_of_8_kinds_are_solved() -> None:
    choices = ["keep", "hyena_x", "hyena_y", "hyena_se", "mamba2", "linear_attention"]
    windows = [{"kind": "window_attention", "half_width": width} for width in (2, 4)]
    mlps = ["keep", *({"kind": "mlp", "ratio": ratio} for ratio in (1, 2, 3, 3.5, 5, 6, 8))]
    space = {"attention": [*choices, *windows], "mlp": mlps}
    document = study_document(space=space, backbone="dit-xl-2-256", limits={"flops": "<= 0.8x"})
    spec = parse_feasible_study({**document, "objectives": [{"minimize": "fid40"}]})
    assert len(spec.space.items) == 56 * 8
    proposer = Proposer(spec.space, random_scores(spec.space), spec.limits)
    assert proposer.meets(proposer.best())
