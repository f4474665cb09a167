"""The latency table's rows, by a clock of our own: the machine's is not to be trusted in a test."""

import numpy as np
import pytest
import torch
from torch import nn

from grafting_core.backbones.base import Backbone
from grafting_core.evaluation.cost import forward_job
from grafting_core.evaluation.latency import NARROW, LatencyBench
from grafting_core.operators.hyena import GatedConvolution
from grafting_core.specs.backbone import backbone_cards, register_cards
from grafting_core.specs.design import GraftDesign, ParallelPair
from grafting_core.specs.latency import MOST_ROUNDS, LatencySpec, TimedPart
from grafting_core.specs.operators import KINDS
from grafting_core.specs.results import Hardware
from tests.support.builders import replacement, same

REST, ATTENTION, MLP, HYENA, PAIR = 0.020, 0.005, 0.010, 0.003, 0.002
"""Seconds; an MLP of ratio 4, of others in proportion."""
CARD = backbone_cards()["testbed/dit-fashion"]


def part(slot: str, kind: str, **fields: object) -> TimedPart:
    return TimedPart(place=slot, operator=KINDS[kind](kind=kind, **fields))


@pytest.fixture
def bench(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> LatencyBench:
    """On a machine where forwards take what their parts take together, and now and then as much again."""
    now, rounds = 0.0, 0

    def forward(backbone: Backbone, network: nn.Module, batch: int, precision: str) -> object:
        taken = seconds_of_network(network)

        def job() -> None:
            nonlocal now, rounds
            rounds += 1
            now += taken * (2 if rounds % 30 == 0 else 1)

        return job

    monkeypatch.setattr("grafting_core.evaluation.latency.forward_job", forward)
    monkeypatch.setattr("grafting_core.evaluation.cost.time.perf_counter", lambda: now)
    parts = (TimedPart(place="rest"),)
    return LatencyBench(backbone, LatencySpec(name="t", backbone=CARD.ref, parts=parts, batch=8))


def seconds_of_network(network: nn.Module) -> float:
    """By formula, from what really stands in the network that is to be timed."""
    taken = REST
    for block in network.transformer_blocks:
        sides = block.sides if hasattr(block, "sides") else (block,)
        taken += PAIR * (len(sides) == 2)
        taken += sum(_attention(side.attn1) + _mlp(side.ff) for side in sides)
    return taken


def _attention(operator: nn.Module) -> float:
    if any(isinstance(each, GatedConvolution) for each in operator.modules()):
        return HYENA
    return ATTENTION if list(operator.parameters()) else 0.0


def _mlp(operator: nn.Module) -> float:
    widest = max((len(each) for each in operator.parameters()), default=0)
    return MLP * widest / (4 * CARD.dims.width)


WHOLE = REST + 8 * (ATTENTION + MLP)


def test_a_row_is_what_one_operator_takes_in_its_place_and_what_it_adds(bench: LatencyBench) -> None:
    row = bench.measure(part("attention", "hyena_x"))
    assert row.seconds.median == pytest.approx(0.003)
    assert row.original.median == pytest.approx(0.005)
    assert row.whole.median == pytest.approx(WHOLE)
    assert row.extra == pytest.approx(-0.002 / WHOLE)
    assert row.extra_low <= row.extra <= row.extra_high
    assert (row.tokens, row.width, row.batch, row.precision) == (49, 96, 8, "float32")


def test_rounds_go_on_until_the_interval_is_narrow(
    bench: LatencyBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = bench.measure(part("attention", "hyena_x"))
    assert row.rounds == 10
    assert 8 * (row.extra_high - row.extra_low) < NARROW
    monkeypatch.setattr("grafting_core.evaluation.latency.NARROW", 0.0)
    assert bench.measure(part("attention", "hyena_x"), seconds=1000).rounds == MOST_ROUNDS


def test_the_rest_and_the_original_operators_add_up_to_the_whole(bench: LatencyBench) -> None:
    rest = bench.measure(TimedPart(place="rest"))
    own = [bench.measure(TimedPart(place=site.slot, operator=CARD.original(site))) for site in CARD.sites[:2]]
    assert rest.seconds.median == pytest.approx(REST)
    assert [row.extra for row in own] == [0, 0]
    assert rest.seconds.median + 8 * sum(row.seconds.median for row in own) == pytest.approx(WHOLE)


def test_a_pair_costs_its_merge(bench: LatencyBench) -> None:
    row = bench.measure(TimedPart(place="pairs"))
    assert row.seconds.median == pytest.approx(0.002)
    assert row.extra == pytest.approx(0.002 / WHOLE)


def test_rows_predict_a_whole_design(bench: LatencyBench) -> None:
    edits = (replacement("hyena_x", 1), replacement("hyena_x", 2), replacement("mlp", 5, ratio=3.0))
    design = GraftDesign(backbone=CARD.ref, edits=edits, pairs=(ParallelPair(first=6),))
    parts = (part("attention", "hyena_x"), part("mlp", "mlp", ratio=3.0), TimedPart(place="pairs"))
    hyena, mlp, pair = (bench.measure(each).extra for each in parts)
    assert (hyena, mlp, pair) == pytest.approx((-0.002 / WHOLE, -0.0025 / WHOLE, 0.002 / WHOLE))
    assert bench.compare(design).ratio == pytest.approx(1 + 2 * hyena + mlp + pair)


def test_copies_share_the_backbones_weights_and_leave_it_as_it_was(backbone: Backbone) -> None:
    before = {name: value.clone() for name, value in backbone.transformer.state_dict().items()}
    bench = LatencyBench(
        backbone, LatencySpec(name="t", backbone=CARD.ref, parts=(TimedPart(place="rest"),), batch=2)
    )
    row = bench.measure(part("mlp", "mlp", ratio=1.0), seconds=0.0)
    assert same(backbone.transformer.state_dict(), before)
    assert not [each for each in backbone.transformer.modules() if isinstance(each, nn.Identity)]
    assert np.isfinite([row.extra, row.seconds.median]).all()
    assert row.rounds == 10


def test_a_row_is_named_by_what_it_depends_on_and_by_no_weights() -> None:
    hyena, mlp = part("attention", "hyena_x"), part("mlp", "mlp", ratio=3.0)
    here = Hardware(device="cpu", processor="x", cores=2, threads=1, memory_gib=8, torch="2")
    spec = LatencySpec(name="a", backbone=CARD.ref, parts=(hyena,), batch=8)
    key = spec.row_key(hyena, here)
    other_weights = CARD.model_copy(update={"name": "other", "digest": "0" * 64})
    alike = LatencySpec(name="b", backbone=other_weights.ref, parts=(mlp, hyena), batch=8)
    register_cards([other_weights])
    try:
        assert alike.row_key(hyena, here) == key
    finally:
        register_cards([])
    others = [
        spec.row_key(mlp, here),
        spec.row_key(hyena, here.model_copy(update={"threads": 2})),
        spec.row_key(hyena, here.model_copy(update={"torch": "3"})),
        spec.model_copy(update={"batch": 9}).row_key(hyena, here),
        spec.model_copy(update={"precision": "bfloat16"}).row_key(hyena, here),
    ]
    assert len({key, *others}) == 6


def test_a_forward_is_timed_in_the_precision_that_it_is_sampled_in(backbone: Backbone) -> None:
    seen: list[torch.dtype] = []

    class Watching(nn.Module):
        def forward(self, latents: torch.Tensor, **given: object) -> object:
            seen.append((latents.flatten(1) @ latents.flatten(1).T).dtype)
            return type("Output", (), {"sample": latents})()

    for precision in ("float32", "bfloat16"):
        forward_job(backbone, Watching(), 2, precision)()
    assert seen == [torch.float32, torch.bfloat16]
