"""Embedders that all blocks repeat are trained as one; every objective goes through both training stages."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from grafting_core.backbones.base import Backbone
from grafting_core.backbones.registered import load_registered, read_card
from grafting_core.backbones.shared_embedders import load_unique_state, unique_state
from grafting_core.data.latents import EncodedImages, Latents, predict_batch
from grafting_core.diffusion.objective import objective_of
from grafting_core.distillation.distill import distill, replacement_student
from grafting_core.specs.design import ReplaceOperator
from grafting_core.specs.operators.hyena import HyenaX
from grafting_core.specs.plans import DistillPlan, FinetunePlan
from grafting_core.specs.site import GraftSite
from grafting_core.surgery.operate import operate
from grafting_core.training.finetune import finetune
from grafting_core.training.observer import StopRequested
from tests.support.builders import design_of, same
from tests.support.diffusers_folders import PIXELS, UNLABELLED, random_transformer, write_folder
from tests.support.training import MemoryCheckpoints, StopAfter

PLAN = FinetunePlan(steps=3, batch_size=8, learning_rate=1e-3, warmup_steps=1, images=32)
EDIT = ReplaceOperator(site=GraftSite(block=1, slot="attention"), operator=HyenaX())
KINDS: dict[str, dict[str, Any]] = {
    "noise and variance": {},
    "noise": {"scheduler": {"_class_name": "DDPMScheduler"}, "out_channels": 4},
    "v": {"scheduler": {"prediction_type": "v_prediction"}, "out_channels": 4},
    "flow on pixels": {
        "scheduler": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
        "vae": False,
        **PIXELS,
    },
    "no labels": UNLABELLED,
}


def loaded(folder: Path, **changes: Any) -> Backbone:
    folder = write_folder(folder, **changes)
    return load_registered(read_card(folder, name="mine"), torch.device("cpu"))


def random_latents(backbone: Backbone, count: int = 32) -> Latents:
    generator = torch.Generator().manual_seed(3)
    mean = torch.randn(count, *backbone.latent_shape, generator=generator)
    labels = torch.arange(count) % max(1, backbone.card.num_classes)
    conditions = backbone.label_conditions(labels)
    return Latents.of(backbone, EncodedImages("ab" * 32, mean, torch.zeros_like(mean), conditions))


def gradients(backbone: Backbone, latents: Latents) -> dict[str, Tensor]:
    """Of the loss of one batch, by name of the parameter."""
    network, batch = backbone.transformer.requires_grad_(True).train(), latents.batch("test", 0, 0, 8)
    output = predict_batch(backbone, batch)
    assert output.std() > 0.1
    latents.objective.loss(output, batch.clean, batch.noise, batch.timesteps).mean().backward()
    return {name: each.grad for name, each in network.named_parameters() if each.grad is not None}


def test_gradients_of_all_blocks_are_summed(tmp_path: Path) -> None:
    shared = loaded(tmp_path)
    apart = shared.with_transformer(random_transformer())
    for module in apart.transformer.modules():
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0
    latents = random_latents(shared)
    ours, theirs = gradients(shared, latents), gradients(apart, latents)
    embedders = [name for name in ours if ".norm1.emb." in name]
    assert len(embedders) == 5
    for name, gradient in ours.items():
        copies = [name.replace("blocks.0", f"blocks.{block}") for block in range(3)]
        summed = sum(theirs[each] for each in copies) if name in embedders else theirs[name]
        torch.testing.assert_close(gradient, summed, rtol=1e-3, atol=1e-5)


def test_shared_weights_are_trained_averaged_and_kept_once(tmp_path: Path) -> None:
    backbone = loaded(tmp_path)
    operate(backbone, design_of(backbone, EDIT))
    held = sum(parameter.numel() for parameter in backbone.transformer.parameters())

    def run(observer: Any, kept: MemoryCheckpoints) -> dict[str, Tensor]:
        graft = backbone.with_transformer(copy.deepcopy(backbone.transformer))
        return finetune(graft, PLAN, random_latents(backbone), observer=observer, checkpoints=kept)

    whole = run(StopAfter(99), MemoryCheckpoints())
    assert sum(value.numel() for value in whole.values()) == held
    kept = MemoryCheckpoints()
    with pytest.raises(StopRequested):
        run(StopAfter(2), kept)
    [tensors] = kept.kept.values()
    # Weights, their average and two moments, and a step count for each parameter.
    assert sum(value.numel() for value in tensors.values()) == 4 * held + len(whole)
    assert same(whole, run(StopAfter(99), kept))
    network = copy.deepcopy(backbone.transformer)
    load_unique_state(network, whole)
    assert same(unique_state(network), whole)
    state = network.state_dict()
    name = "norm1.emb.class_embedder.embedding_table.weight"
    changed, before = (
        each[f"transformer_blocks.0.{name}"] for each in (state, backbone.transformer.state_dict())
    )
    assert not torch.equal(changed, before)
    assert torch.equal(changed, state[f"transformer_blocks.2.{name}"])


def test_a_complete_state_is_loaded_and_an_incomplete_one_refused(tmp_path: Path) -> None:
    backbone = loaded(tmp_path)
    state = random_transformer(seed=4).state_dict()
    load_unique_state(backbone.transformer, state)
    assert same(backbone.transformer.state_dict(), state)
    with pytest.raises(RuntimeError, match=r"Missing key.*proj_out_1\.bias"):
        load_unique_state(
            backbone.transformer, {name: value for name, value in state.items() if name != "proj_out_1.bias"}
        )


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_every_objective_goes_through_both_stages(tmp_path: Path, kind: dict[str, Any]) -> None:
    """A distilled operator is closer to the original than a random one; finetuning lowers the loss."""
    backbone = loaded(tmp_path, **kind)
    latents = random_latents(backbone)
    plan = DistillPlan(steps=40, batch_size=16, learning_rate=3e-3, images=32, held_out=32)
    untrained = plan.model_copy(update={"steps": 0})
    errors = {}
    for key, given in (("before", untrained), ("after", plan)):
        result = distill(backbone, [replacement_student(EDIT, given, key)], latents, latents)[key]
        errors[key] = result.errors["nmse"]
    assert errors["after"] < 0.9 * errors["before"]
    graft = backbone.with_transformer(copy.deepcopy(backbone.transformer))
    operate(graft, design_of(graft, EDIT))

    def loss() -> float:
        batch = latents.batch("judged", 0, 0, 32)
        with torch.no_grad():
            output = predict_batch(graft, batch)
        objective = objective_of(backbone.card)
        return float(objective.loss(output, batch.clean, batch.noise, batch.timesteps).mean())

    before = loss()
    dropout = 0.1 if backbone.card.num_classes else 0.0
    longer = PLAN.model_copy(update={"steps": 10, "batch_size": 16, "label_dropout": dropout})
    finetune(graft, longer, latents)
    assert loss() < before
