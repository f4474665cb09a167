"""Stage 2 resumes to the bit, keeps averaged weights, and shares batches evenly."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from grafting_core.backbones.base import Backbone
from grafting_core.data.latents import EncodedImages, Latents
from grafting_core.specs.plans import FinetunePlan
from grafting_core.training.finetune import Shard, finetune
from grafting_core.training.observer import NoCheckpoints, NullObserver, StopRequested
from grafting_core.training.optim import Diverged
from tests.support.builders import same
from tests.support.training import MemoryCheckpoints, StopAfter

PLAN = FinetunePlan(steps=5, batch_size=8, learning_rate=1e-3, warmup_steps=2, images=200)


def copied(backbone: Backbone) -> Backbone:
    return backbone.with_transformer(copy.deepcopy(backbone.transformer))


def test_an_interrupted_finetune_ends_as_an_uninterrupted_one(backbone: Backbone, latents: Latents) -> None:
    def run(observer: StopAfter | NullObserver, kept: MemoryCheckpoints) -> dict[str, torch.Tensor]:
        return finetune(copied(backbone), PLAN, latents, observer=observer, checkpoints=kept)

    whole = run(NullObserver(), MemoryCheckpoints())
    kept = MemoryCheckpoints()
    for step in (2, 3):
        with pytest.raises(StopRequested):
            run(StopAfter(step), kept)
    assert same(whole, run(NullObserver(), kept))


def test_no_steps_leave_the_weights_as_they_are(backbone: Backbone, latents: Latents) -> None:
    plan = PLAN.model_copy(update={"steps": 0})
    result = finetune(copied(backbone), plan, latents, observer=NullObserver(), checkpoints=NoCheckpoints())
    assert same(result, backbone.transformer.state_dict())


def test_a_loss_that_is_not_finite_is_a_result(backbone: Backbone, latents: Latents) -> None:
    encoded = latents.dataset
    assert isinstance(encoded, EncodedImages)
    nan = replace(encoded, mean=torch.full_like(encoded.mean, float("nan")))
    with pytest.raises(Diverged, match="at step 0"):
        finetune(
            copied(backbone),
            PLAN,
            replace(latents, dataset=nan),
            observer=NullObserver(),
            checkpoints=NoCheckpoints(),
        )


def test_the_shares_of_all_ranks_are_the_batch() -> None:
    rows = [row for rank in range(4) for row in range(8)[Shard(rank, 4).of(8)]]
    assert rows == list(range(8))
    with pytest.raises(ValueError, match="use a multiple"):
        Shard(0, 3).of(8)


def test_batches_depend_on_seed_and_step_alone(latents: Latents) -> None:
    first, again = (latents.batch("finetune", 0, 7, 16) for _ in range(2))
    assert torch.equal(first.noise, again.noise)
    assert torch.equal(first.clean, again.clean)
    assert not torch.equal(first.noise, latents.batch("finetune", 0, 8, 16).noise)


def test_an_epoch_visits_every_image_once(latents: Latents) -> None:
    rows = torch.cat([latents.rows("finetune", 0, step, 40) for step in range(5)])
    assert sorted(rows.tolist()) == list(range(200))


class Reads(TorchDispatchMode):
    """Counts how often Python asks for a figure that is on the device."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_the_loss_is_read_once_a_step_however_many_parts_it_has(backbone: Backbone, latents: Latents) -> None:
    def reads(accumulation_steps: int) -> int:
        given = {
            "observer": NullObserver(),
            "checkpoints": NoCheckpoints(),
            "accumulation_steps": accumulation_steps,
        }
        with Reads() as counted:
            finetune(copied(backbone), PLAN.model_copy(update={"steps": 2}), latents, **given)
        return counted.count

    assert reads(4) == reads(1) > 0
