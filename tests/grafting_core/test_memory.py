"""Memory by arithmetic is what networks keep; what does not fit is told with what would."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from grafting_core.operators.table import build_operator
from grafting_core.specs.backbone import BackboneCard, backbone_cards
from grafting_core.specs.design import GraftDesign
from grafting_core.specs.dims import BlockDims
from grafting_core.specs.documents.designs import parse_submission
from grafting_core.specs.experiment import ExperimentSpec
from grafting_core.specs.memory import (
    BACKWARD_TENSORS,
    PROCESS,
    distillation_memory,
    finetuning_memory,
    sampling_memory,
)
from grafting_core.specs.memory_fit import check_memory, memory_problems
from grafting_core.specs.operators import KINDS
from grafting_core.specs.plans import DistillPlan, EvaluationProtocol, FinetunePlan
from tests.support.builders import QUICK, replacement
from tests.support.diffusers_folders import random_transformer

DIMS = BlockDims(width=192, num_heads=4, mlp_ratio=4.0, grid=(16, 16))
TENSOR = 4 * DIMS.num_tokens * DIMS.width
XL = backbone_cards()["dit-xl-2-256"]


def card_of(depth: int) -> BackboneCard:
    return XL.model_copy(update={"dims": DIMS, "depth": depth, "num_params": 10_000_000})


def kept_bytes(forward: Callable[[], Tensor], owned: Iterable[Tensor]) -> int:
    """Of everything that a forward keeps for its backward, beside the network's own tensors."""
    own = {tensor.untyped_storage().data_ptr() for tensor in owned}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = forward()
    assert output.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def tensors_of(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("rows", [2, 4])
def test_finetuning_keeps_the_activations_that_are_counted(depth: int, rows: int) -> None:
    sizes = {"num_attention_heads": 4, "attention_head_dim": 48, "sample_size": 32, "num_layers": depth}
    network = random_transformer(**sizes).train()
    labels = torch.zeros(rows, dtype=torch.int64)
    kept = kept_bytes(
        lambda: network(torch.randn(rows, 4, 32, 32), timestep=labels, class_labels=labels).sample,
        tensors_of(network),
    )
    card = card_of(depth)
    need = finetuning_memory(card, GraftDesign(backbone=card.ref), FinetunePlan(batch_size=rows))
    assert need.activations - rows * TENSOR * BACKWARD_TENSORS == pytest.approx(kept, rel=0.05)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_distillation_keeps_what_is_counted_of_every_operator(kind: str) -> None:
    edit = replacement(kind)
    operator = build_operator(edit.operator, DIMS).train()
    hidden = torch.randn(3, DIMS.num_tokens, DIMS.width, requires_grad=True)
    kept = kept_bytes(lambda: operator(hidden), tensors_of(operator)) / (3 * TENSOR)
    card, plan = card_of(2), DistillPlan(batch_size=64)
    whole, halved = (distillation_memory(card, (edit,), plan, accumulation_steps=parts) for parts in (1, 2))
    counted = (whole.activations - halved.activations) / (32 * TENSOR) - BACKWARD_TENSORS
    assert kept <= 1.1 * counted
    assert counted <= max(1.1 * kept, kept + 2)


def test_weights_gradients_moments_and_average_are_counted_once() -> None:
    """13.5 GB for a full-size transformer whose embedders are shared."""
    card = XL.model_copy(update={"num_params": 749_830_688, "repeated_params": 74_995_968})
    plan = FinetunePlan(batch_size=1)
    alone = finetuning_memory(card, GraftDesign(backbone=card.ref), plan, teacher=False)
    held = alone.weights + alone.gradients + alone.optimiser + alone.average
    assert held == 20 * 674_834_720
    beside = finetuning_memory(card, GraftDesign(backbone=card.ref), plan)
    assert beside.total - alone.total == 4 * 674_834_720
    design = GraftDesign(backbone=card.ref, edits=(replacement("mlp", ratio=2.0),))
    smaller = finetuning_memory(card, design, plan, teacher=False)
    assert alone.weights - smaller.weights == 4 * 4 * 1152**2 + 4 * 2 * 1152


def test_stored_features_and_the_decoder_are_counted() -> None:
    card, edit = card_of(2), replacement("hyena_x")
    plan = DistillPlan(batch_size=4, images=100)
    fresh, stored = (
        distillation_memory(card, (edit, edit), plan.model_copy(update={"features": features}))
        for features in ("fresh", "stored")
    )
    assert stored.total - fresh.total == 2 * 100 * TENSOR
    teacher = GraftDesign(backbone=card.ref)
    protocol = EvaluationProtocol(micro_batch=10, guidance=1.0)
    decoding = card.model_copy(update={"figures": {"decoder_bytes": 5e9}})
    assert sampling_memory(decoding, teacher, protocol).activations == 50_000_000_000
    single, guided = (
        sampling_memory(card, teacher, protocol.model_copy(update={"guidance": each})) for each in (1.0, 2.0)
    )
    assert guided.activations == 2 * single.activations


def spec_of(**changes: Any) -> ExperimentSpec:
    edits = [{"replace": "mlp", "layers": [0, 1, 2, 3], "with": {"kind": "mlp", "ratio": 2.0}}]
    evaluate = {**QUICK["evaluate"], "micro_batch": 1, "sampling_steps": 3}
    finetune = {**QUICK["finetune"], "batch_size": 64}
    asked = {**QUICK, "finetune": finetune, "evaluate": evaluate, **changes}
    return parse_submission({"name": "a", "backbone": XL.name, "edits": edits, "preset": "demo", **asked})


def test_what_does_not_fit_is_told_with_what_would() -> None:
    spec = spec_of()
    whole = finetuning_memory(XL, spec.design, spec.finetune)
    assert not memory_problems(spec, XL, whole.total)
    [problem] = memory_problems(spec, XL, whole.total - 1)
    assert (problem.stage, problem.settings) == ("finetune", {"accumulation_steps": 2})
    fixed = whole.total - whole.activations
    [problem] = memory_problems(spec, XL, fixed + whole.activations // 60)
    assert problem.settings == {"accumulation_steps": 64}
    [problem] = memory_problems(spec, XL, fixed + whole.activations // 60, accumulation_steps=32)
    assert problem.settings == {"accumulation_steps": 64}
    assert "with accumulation_steps 64 it would take" in problem.message
    assert not memory_problems(spec, XL, fixed + whole.activations // 60, accumulation_steps=64)
    with pytest.raises(
        ValueError, match=r"finetune takes .* GB of the .* GB of a worker; with accumulation_steps"
    ):
        check_memory(spec, XL, whole.total - 1)


def test_what_nothing_helps_is_told_so() -> None:
    spec = spec_of()
    problems = memory_problems(spec, XL, PROCESS)
    assert {problem.stage for problem in problems} == {"distill", "finetune", "evaluate"}
    assert all(problem.settings == {} and "take a larger device" in problem.message for problem in problems)


def test_more_workers_share_sites_and_sampling_takes_smaller_batches() -> None:
    """Where a batch of one row is too much already."""
    spec = spec_of(distill={**QUICK["distill"], "batch_size": 1})
    need = distillation_memory(XL, spec.design.parts, spec.distill)
    [problem] = [each for each in memory_problems(spec, XL, need.total - 1) if each.stage == "distill"]
    assert problem.settings == {"resources.workers": 2}
    teacher = parse_submission({"name": "a", "backbone": XL.name, "edits": []})
    sampling = sampling_memory(XL, teacher.design, teacher.evaluate)
    [problem] = memory_problems(teacher, XL, sampling.total - 1)
    assert problem.settings == {"evaluate.micro_batch": teacher.evaluate.micro_batch // 2}
