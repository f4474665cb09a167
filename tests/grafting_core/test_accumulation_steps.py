"""A batch computed in parts gives the step of the whole batch, and a defined one."""

import copy

import pytest
import torch

from grafting_core.backbones.base import Backbone
from grafting_core.data.latents import Latents
from grafting_core.distillation.distill import distill, replacement_student
from grafting_core.specs.plans import DistillPlan, FinetunePlan, Loss
from grafting_core.training.finetune import finetune
from grafting_core.training.observer import NoCheckpoints, NullObserver
from tests.support.builders import replacement, same
from tests.support.training import MemoryCheckpoints

FINETUNE = FinetunePlan(steps=2, batch_size=12, warmup_steps=0, images=200)


def finetuned(backbone: Backbone, latents: Latents, parts: int) -> dict[str, torch.Tensor]:
    graft = backbone.with_transformer(copy.deepcopy(backbone.transformer))
    kept = MemoryCheckpoints()
    return finetune(
        graft, FINETUNE, latents, observer=NullObserver(), checkpoints=kept, accumulation_steps=parts
    )


def test_finetuning_in_parts_is_the_whole_to_rounding_and_the_same_every_time(
    backbone: Backbone, latents: Latents
) -> None:
    whole, parts, again = (finetuned(backbone, latents, count) for count in (1, 5, 5))
    assert same(parts, again)
    assert not same(whole, parts)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("loss", ["l1", "l2", "huber", "nmse"])
def test_distilling_in_parts_is_the_whole_to_rounding(
    backbone: Backbone, latents: Latents, loss: Loss
) -> None:
    plan = DistillPlan(steps=2, batch_size=12, held_out=8, images=200, attention_loss=loss)
    candidates = [replacement_student(replacement("hyena_x"), plan, "k")]
    whole, parts = (
        distill(
            backbone,
            candidates,
            latents,
            latents,
            observer=NullObserver(),
            checkpoints=NoCheckpoints(),
            accumulation_steps=count,
        )
        for count in (1, 5)
    )
    for name, value in whole["k"].state.items():
        torch.testing.assert_close(parts["k"].state[name], value, rtol=1e-3, atol=2e-5)
