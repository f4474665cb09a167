"""Depth to width: identities of pairs and merges (methods section 5, rows 13 to 15), and undo to the bit."""

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from grafting_core.backbones.base import Backbone
from grafting_core.backbones.capture import capture
from grafting_core.backbones.fast_forward import PlainForward, forward_of
from grafting_core.data.latents import Latents
from grafting_core.distillation.distill import distill
from grafting_core.distillation.held_out import held_out_errors
from grafting_core.distillation.merge_init import fit_merges, merge_student
from grafting_core.operators.mlp import FeedForward
from grafting_core.operators.parallel import ParallelBlocks, mean_merge
from grafting_core.specs.design import ParallelPair, Place
from grafting_core.specs.plans import DistillPlan
from grafting_core.surgery.operate import new_operator, operate
from grafting_core.surgery.parallel_blocks import PairCapture, pair_blocks
from grafting_core.training.observer import NoCheckpoints, NullObserver
from tests.support.builders import design_of, replacement, same

PAIR = ParallelPair(first=2)
ALL = [ParallelPair(first=first) for first in range(0, 8, 2)]
DTYPES = pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-11), (torch.float32, 1e-5)])


def output(backbone: Backbone, transformer: nn.Module | None = None) -> Tensor:
    torch.manual_seed(0)
    latents, timesteps, labels = torch.randn(2, 4, 7, 7), torch.tensor([3, 700]), torch.tensor([1, 10])
    with torch.no_grad():
        network = transformer or backbone.transformer
        result: Tensor = network(latents, timestep=timesteps, class_labels=labels).sample
    return result


def sides(backbone: Backbone, dtype: torch.dtype) -> tuple[nn.Module, nn.Module, tuple[Tensor, ...]]:
    """Two blocks of the testbed, and what they are called with."""
    first, second = (
        copy.deepcopy(backbone.transformer.get_submodule(f"transformer_blocks.{block}")).to(dtype)
        for block in PAIR.blocks
    )
    torch.manual_seed(0)
    return first, second, (torch.randn(2, 49, 96, dtype=dtype), torch.tensor([3, 700]), torch.tensor([1, 10]))


def called(block: nn.Module, hidden: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        result: Tensor = block(hidden, timestep=timesteps, class_labels=labels)
    return result


@DTYPES
def test_two_parallel_mlps_are_one_concatenated_mlp(dtype: torch.dtype, bound: float) -> None:
    torch.manual_seed(0)
    one, two, wide = (FeedForward(24, hidden).to(dtype) for hidden in (96, 72, 168))
    with torch.no_grad():
        for name in ("expand.weight", "expand.bias"):
            parts = [module.get_parameter(name) for module in (one, two)]
            wide.get_parameter(name).copy_(torch.cat(parts))
        wide.contract.weight.copy_(torch.cat([one.contract.weight, two.contract.weight], dim=1))
        wide.contract.bias.copy_(one.contract.bias + two.contract.bias)
    hidden = torch.randn(3, 20, 24, dtype=dtype)
    torch.testing.assert_close(wide(hidden), one(hidden) + two(hidden), rtol=bound, atol=bound)


@DTYPES
def test_a_merge_can_return_either_side_or_their_mean(
    backbone: Backbone, dtype: torch.dtype, bound: float
) -> None:
    first, second, given = sides(backbone, dtype)
    merge = mean_merge(96).to(dtype).requires_grad_(False)
    pair = ParallelBlocks(first, second, merge)
    a, b = called(first, *given), called(second, *given)
    torch.testing.assert_close(called(pair, *given), (a + b) / 2, rtol=0, atol=bound)
    zeros, ones = torch.zeros(96, 96, dtype=dtype), torch.eye(96, dtype=dtype)
    for left, right, expected in ((ones, zeros, a), (zeros, ones, b)):
        merge.weight.data = torch.cat([left, right], dim=1)
        assert torch.equal(called(pair, *given), expected)


@DTYPES
def test_a_second_block_with_closed_gates_makes_sequence_and_pair_the_same(
    backbone: Backbone, dtype: torch.dtype, bound: float
) -> None:
    """With both gates of B at 0, B is the identity: B(A(x)) = A(x), and a + b - x = a."""
    first, second, given = sides(backbone, dtype)
    a = called(first, *given)
    assert not torch.equal(called(second, a, *given[1:]), a)  # the negative control: open gates
    modulation = second.get_submodule("norm1.linear")
    for chunk in (2, 5):  # gate_msa, gate_mlp
        modulation.weight.data.view(6, 96, 96)[chunk] = 0
        modulation.bias.data.view(6, 96)[chunk] = 0
    b = called(second, *given)
    assert torch.equal(called(second, a, *given[1:]), a)
    assert torch.equal(a + (b - given[0]), a)


def test_pairing_everything_halves_the_list_and_undo_gives_every_bit_back(backbone: Backbone) -> None:
    network = backbone.transformer
    before, weights = output(backbone), {k: v.clone() for k, v in network.state_dict().items()}
    undo = operate(backbone, design_of(backbone, *ALL))
    assert len(network.get_submodule("transformer_blocks")) == 4
    assert not torch.equal(output(backbone), before)
    undo.undo()
    assert torch.equal(output(backbone), before)
    assert same(network.state_dict(), weights)


def test_replacements_inside_a_pair_stand_where_they_stood(backbone: Backbone) -> None:
    graft, edit = backbone.with_transformer(copy.deepcopy(backbone.transformer)), replacement("hyena_x", 3)
    network = graft.transformer
    before = output(backbone)
    undo = operate(graft, design_of(backbone, edit, *ALL))
    paired = network.get_submodule("transformer_blocks.1")
    assert isinstance(paired, ParallelBlocks)
    assert paired.second.get_submodule("attn1") is graft.get_operator(edit.site)
    undo.undo()
    assert torch.equal(output(backbone, network), before)


def test_given_modules_are_put_in_place_and_missing_ones_are_made(backbone: Backbone) -> None:
    graft = backbone.with_transformer(copy.deepcopy(backbone.transformer))
    edit, other = replacement("mlp", 3, ratio=2.0), replacement("mlp", 6, ratio=3.0)
    modules: dict[Place, nn.Module] = {edit.place: new_operator(backbone, edit, 7), PAIR: mean_merge(96)}
    operate(graft, design_of(backbone, ALL[0], other, PAIR, edit), modules)
    blocks = {entry.merge for entry in graft.transformer.modules() if isinstance(entry, ParallelBlocks)}
    assert graft.get_operator(edit.site) is modules[edit.site]
    assert modules[PAIR] in blocks
    assert len(blocks) == 2
    made = graft.get_operator(other.site)
    assert same(made.state_dict(), new_operator(backbone, other, 0).state_dict())


def test_a_pair_across_the_end_is_refused_before_any_change(backbone: Backbone) -> None:
    before = output(backbone)
    with pytest.raises(ValueError, match="blocks are 0 to 7"):
        operate(backbone, design_of(backbone, replacement("hyena_x"), ParallelPair(first=7)))
    assert torch.equal(output(backbone), before)


def test_a_paired_network_trains_under_gradient_checkpointing(backbone: Backbone) -> None:
    def gradients(checkpointed: bool) -> dict[str, Tensor]:
        network = copy.deepcopy(backbone.transformer).train().requires_grad_(True)
        operate(backbone.with_transformer(network), design_of(backbone, *ALL))
        if checkpointed:
            network.enable_gradient_checkpointing()
        torch.manual_seed(0)
        noisy = torch.randn(2, 4, 7, 7)
        network(
            noisy, timestep=torch.tensor([3, 9]), class_labels=torch.tensor([1, 2])
        ).sample.sum().backward()
        return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}

    assert same(gradients(False), gradients(True))


def test_a_region_gives_both_sides_and_the_sequence(backbone: Backbone) -> None:
    """The extra forward of the second block must not disturb who watches inside it."""
    seen: list[tuple[Tensor, Tensor]] = []
    inside, entered = [], []
    network = backbone.transformer
    inner = backbone.get_operator(replacement("mha", 3).site)
    handle = inner.register_forward_hook(lambda *call: inside.append(call[2]))

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        entered.append((args[0], kwargs))

    first, second = (network.get_submodule(f"transformer_blocks.{block}") for block in PAIR.blocks)
    watcher = first.register_forward_pre_hook(enter, with_kwargs=True)
    with capture(backbone, {PairCapture(PAIR): lambda *both: seen.append(both)}):
        output(backbone)
    handle.remove(), watcher.remove()
    ((sides_BTD, target),), ((hidden, kwargs),) = seen, entered
    assert len(inside) == 1
    with torch.no_grad():
        a, b = first(hidden, **kwargs), second(hidden, **kwargs)
        assert torch.equal(sides_BTD, torch.cat([a, b], dim=2))
        assert torch.equal(target, second(a, **kwargs))


def test_a_fitted_start_beats_the_mean_and_stage_1_improves_on_it(
    backbone: Backbone, latents: Latents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grafting_core.distillation.merge_init.FIT_BATCHES", 2)
    plan = DistillPlan(steps=20, batch_size=16, learning_rate=1e-3, held_out=32)
    fitted, key = fit_merges(backbone, ALL, latents, seed=0), "pair 2+3"
    candidate = merge_student(PAIR, plan, key, fitted[PAIR])
    trained = distill(
        backbone, [candidate], latents, latents, observer=NullObserver(), checkpoints=NoCheckpoints()
    )[key]
    starts = {"mean": mean_merge(96), "fitted": fitted[PAIR]}
    modules = {name: (PairCapture(PAIR), merge) for name, merge in starts.items()}
    errors = held_out_errors(backbone, modules, plan, latents)
    assert errors["fitted"]["nmse"] < errors["mean"]["nmse"] / 3
    assert trained.curve[-1][1] < trained.curve[0][1]
    alone = fit_merges(backbone, [PAIR], latents, seed=0)[PAIR]
    assert same(alone.state_dict(), fitted[PAIR].state_dict())


def test_sampling_sees_pairs_as_the_network_does(backbone: Backbone) -> None:
    network = copy.deepcopy(backbone.transformer)
    operate(backbone.with_transformer(network), design_of(backbone, replacement("hyena_x", 2), *ALL[:3]))
    latents, labels = torch.randn(12, 4, 7, 7), torch.tensor([3, 0, 9, 10, 10, 7, 1, 2, 3, 10, 10, 5])
    with torch.no_grad():
        conditions = backbone.label_conditions(labels)
        own = PlainForward(network)(latents, 417, conditions)
        fast = forward_of(network)(latents, 417, conditions)
    torch.testing.assert_close(fast, own, rtol=1e-5, atol=1e-5)


def test_blocks_may_be_paired_in_the_middle_alone(backbone: Backbone) -> None:
    network = copy.deepcopy(backbone.transformer)
    pair_blocks(backbone.with_transformer(network), {ParallelPair(first=3): mean_merge(96)})
    kinds = [isinstance(block, ParallelBlocks) for block in network.get_submodule("transformer_blocks")]
    assert kinds == [False, False, False, True, False, False, False]
    assert output(backbone, network).shape == (2, 8, 7, 7)


def test_watching_a_pair_copies_no_block(backbone: Backbone) -> None:
    """A block that cannot be copied can be watched, and keeps its hooks."""
    network, seen = copy.deepcopy(backbone.transformer), []
    second = network.get_submodule(f"transformer_blocks.{PAIR.blocks[1]}")
    second.uncopyable = threading.Lock()
    called_inside: list[int] = []
    second.get_submodule("norm1").register_forward_hook(lambda *_: called_inside.append(1))
    for _ in range(2):
        with capture(
            backbone.with_transformer(network), {PairCapture(PAIR): lambda *both: seen.append(both)}
        ):
            output(backbone, network)
    output(backbone, network)
    assert (len(seen), len(called_inside)) == (2, 3)
