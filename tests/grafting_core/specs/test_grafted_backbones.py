"""A graft as a backbone: cost, memory, studies and documents go by the operators that it has."""

import json
from typing import Any

import pytest

from grafting_core.specs.backbone import BackboneCard, BackboneRef, backbone_cards, register_cards
from grafting_core.specs.canonical import digest
from grafting_core.specs.changes import slot_changes
from grafting_core.specs.cost import design_cost, part_flops
from grafting_core.specs.design import GraftDesign, ParallelPair, grafted_card
from grafting_core.specs.documents.analyses import parse_analysis
from grafting_core.specs.documents.designs import parse_submission
from grafting_core.specs.documents.errors import SpecError
from grafting_core.specs.latency import LatencySpec, TimedPart
from grafting_core.specs.memory import finetuning_memory
from grafting_core.specs.plans import FinetunePlan
from grafting_core.specs.results import Hardware
from grafting_core.specs.site import GraftSite
from grafting_core.specs.studies.latencies import timed_parts, with_latencies
from grafting_core.specs.studies.space import Keep, Space, pair_of, variable_of
from tests.support.builders import document, experiment, replacement
from tests.support.latency import timed_row
from tests.support.registered import only_registered

PLAIN = backbone_cards()["testbed/dit-fashion"]
FIRST = GraftDesign.of(
    PLAIN.ref,
    [
        replacement("hyena_x", 1),
        replacement("mlp", 2, ratio=2.0),
        replacement("mha", 4),
        ParallelPair(first=4),
    ],
)
GRAFT = grafted_card(PLAIN, FIRST).model_copy(update={"name": "own/graft", "digest": "ab" * 32})


def design(*parts: Any) -> GraftDesign:
    return GraftDesign.of(GRAFT.ref, parts)


def spec_of(card: BackboneCard, made: GraftDesign) -> Any:
    return experiment().model_copy(update={"design": made.model_copy(update={"backbone": card.ref})})


def test_the_card_of_a_graft_has_the_totals_of_its_design() -> None:
    cost = design_cost(spec_of(PLAIN, FIRST), PLAIN)
    assert (GRAFT.num_params, GRAFT.forward_flops()) == (cost.num_params, cost.flops_per_forward)
    assert GRAFT.serial_depth == cost.depth == 7
    own = design_cost(spec_of(GRAFT, design()), GRAFT)
    assert (own.num_params, own.flops_per_forward, own.depth) == (cost.num_params, cost.flops_per_forward, 7)


def test_a_graft_on_a_graft_costs_what_one_on_the_backbone_costs() -> None:
    second = design(replacement("hyena_y", 1), replacement("mlp", 5, ratio=3.0), ParallelPair(first=0))
    whole = GraftDesign.of(PLAIN.ref, [*FIRST.edits[1:], *second.edits, *FIRST.pairs, *second.pairs])
    ours, theirs = design_cost(spec_of(GRAFT, second), GRAFT), design_cost(spec_of(PLAIN, whole), PLAIN)
    assert (ours.num_params, ours.flops_per_forward) == (theirs.num_params, theirs.flops_per_forward)
    assert (ours.depth, ours.teacher_depth) == (6, 7)
    again = grafted_card(GRAFT, second)
    assert again.edits == whole.edits
    assert again.pairs == whole.pairs
    plan = FinetunePlan(batch_size=8)
    need, expected = finetuning_memory(GRAFT, second, plan), finetuning_memory(PLAIN, whole, plan)
    assert (need.weights, need.activations) == (expected.weights, expected.activations)


def test_changes_are_relative_to_the_operators_that_are_there() -> None:
    (change,) = slot_changes(design(replacement("hyena_x", 0)), GRAFT)
    dims = PLAIN.dims
    new, mha = (replacement(kind).operator.num_params(dims) for kind in ("hyena_x", "mha"))
    assert change.num_params == (new - mha) / (7 * mha + new)
    (none,) = slot_changes(design(replacement("hyena_x", 1)), GRAFT)
    assert (none.operator_flops, none.feature_flops, none.num_params) == (0, 0, 0)


def test_the_second_block_of_a_pair_costs_a_forward_of_what_it_holds() -> None:
    pair = ParallelPair(first=0)
    difference = part_flops(PLAIN, pair) - part_flops(GRAFT, pair)
    mha, hyena = (replacement(kind).operator.computed_flops(PLAIN.dims) for kind in ("mha", "hyena_x"))
    assert difference == mha - hyena


def test_items_of_a_study_are_relative_to_the_operator_at_their_sites() -> None:
    hyena, mha = (replacement(kind).operator for kind in ("hyena_x", "mha"))
    sites = [GraftSite(block=block, slot="attention") for block in (0, 1)]
    _, item = variable_of(GRAFT, sites, [Keep(), hyena]).items
    assert item.params == hyena.num_params(PLAIN.dims) - mha.num_params(PLAIN.dims)
    assert [pair.first for pair in GRAFT.free_pairs] == [0, 2, 6]
    assert [pair.first for pair in PLAIN.free_pairs] == [0, 2, 4, 6]


HARDWARE = Hardware(device="cpu", processor="p", cores=1, threads=1, memory_gib=1, torch="2")


def test_latencies_are_relative_to_the_operator_that_is_replaced() -> None:
    hyena, window = (replacement(kind).operator for kind in ("hyena_x", "window_attention"))
    variables = tuple(
        variable_of(GRAFT, [GraftSite(block=block, slot="attention")], [Keep(), window]) for block in (0, 1)
    )
    space = Space(
        backbone=GRAFT.ref,
        base_params=GRAFT.num_params,
        base_flops=GRAFT.forward_flops(),
        variables=variables,
        pairs=(pair_of(GRAFT, GRAFT.free_pairs[0]),),
    )
    parts = timed_parts(space, GRAFT)
    assert [part.name for part in parts] == [
        *("rest", "attention mha", "attention hyena_x", "mlp mlp", "mlp mlp(ratio=2)"),
        *("attention window_attention", "pairs"),
    ]
    extras = {"attention mha": 0.01, "attention hyena_x": -0.07, "attention window_attention": -0.02}
    with only_registered(GRAFT):
        work = LatencySpec(name="table", backbone=GRAFT.ref, parts=parts, batch=2)
        rows = [timed_row(work, part, extras.get(part.name, 0.0)) for part in parts]
        timed = with_latencies(space, rows, GRAFT)
        key = work.row_key(TimedPart(place="rest"), HARDWARE)
    assert [variable.items[1].latency for variable in timed.variables] == pytest.approx([-0.03, 0.05])
    plain = LatencySpec(name="table", backbone=PLAIN.ref, parts=parts, batch=2)
    assert key != plain.row_key(TimedPart(place="rest"), HARDWARE)
    assert hyena in [part.operator for part in parts]


@pytest.fixture
def registered() -> Any:
    with only_registered(GRAFT):
        yield
    register_cards(())


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"parallel_pairs": [[3, 4]]}, "block 4 is in pair 4+5 of own/graft; pairs must not share blocks"),
        ({"parallel_pairs": "all"}, "block 4 is in pair 4+5 of own/graft"),
        (
            {"replace": "attention", "layers": [1], "with": {"kind": "mha"}, "init": "inherit"},
            "the backbone has hyena_x at block 1 attention, whose weights fit no other operator",
        ),
    ],
)
def test_designs_that_a_graft_does_not_allow_are_refused(edit: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message.replace("+", r"\+")):
        parse_submission(document(backbone="own/graft", edits=[edit]))


@pytest.mark.usefixtures("registered")
def test_the_locality_of_a_graft_without_softmax_attention_is_not_measured() -> None:
    with pytest.raises(SpecError, match="own/graft has hyena_x at block 1 attention; the locality"):
        parse_analysis({"backbone": "own/graft"})
    only_mlps = grafted_card(PLAIN, GraftDesign.of(PLAIN.ref, [replacement("mlp", 2, ratio=2.0)]))
    with only_registered(only_mlps.model_copy(update={"name": "own/mlps"})):
        assert parse_analysis({"backbone": "own/mlps"}).bands == (6,)


@pytest.mark.usefixtures("registered")
def test_a_grafted_attention_gives_its_weights() -> None:
    edit = {"replace": "attention", "layers": [4], "with": {"kind": "hyena_x"}, "init": "inherit"}
    assert parse_submission(document(backbone="own/graft", edits=[edit])).design.edits[0].init == "inherit"


def test_a_card_without_grafts_has_the_digest_that_it_had() -> None:
    fields = PLAIN.model_dump()
    older = {name: value for name, value in fields.items() if name not in PLAIN.added}
    assert digest(PLAIN) == digest(older)
    assert (
        BackboneCard.model_validate_json(json.dumps({**older, "pretraining": fields["pretraining"]})) == PLAIN
    )
    assert digest(GRAFT) != digest(GRAFT.model_copy(update={"edits": ()}))
    assert BackboneCard.model_validate_json(GRAFT.model_dump_json()) == GRAFT


def test_a_design_of_another_backbone_makes_no_card() -> None:
    other = GraftDesign(backbone=BackboneRef(name="other", digest="0" * 64))
    with pytest.raises(ValueError, match="the design is one of other, not of this testbed/dit-fashion"):
        grafted_card(PLAIN, other)
