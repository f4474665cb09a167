"""Stage 1 in one pass gives the weights of distilling alone, and survives interruption to the bit."""

import pytest
import torch

from grafting_core.backbones.loader import Backbone
from grafting_core.data import Latents
from grafting_core.distillation import distill
from grafting_core.observing import NoCheckpoints, Silent, StopRequested
from grafting_core.optimisation import Diverged
from grafting_core.spec.plans import DistillPlan
from tests.builders import MemoryCheckpoints, StopAfter, replacement, same

PLAN = DistillPlan(steps=4, batch_size=8, learning_rate=1e-3, held_out=16, images=200)
KINDS = ("hyena_x", "window_attention", "mlp")
EDITS = [replacement(kind, block) for kind, blocks in zip(KINDS, ((0, 3, 5), (1, 2, 7), (0, 4)), strict=True) for block in blocks]  # fmt: skip  # noqa: E501


def test_one_pass_is_bit_identical_to_distilling_each_alone(backbone: Backbone, latents: Latents) -> None:
    together = distill(backbone, EDITS, PLAN, latents, observer=Silent(), checkpoints=NoCheckpoints())
    for edit in EDITS:
        alone = distill(backbone, [edit], PLAN, latents, observer=Silent(), checkpoints=NoCheckpoints())
        assert same(together[edit.site].state, alone[edit.site].state)


def test_the_teacher_keeps_its_weights_and_gets_no_gradient(backbone: Backbone, latents: Latents) -> None:
    before = {name: value.clone() for name, value in backbone.transformer.state_dict().items()}
    distill(backbone, EDITS[:2], PLAN, latents, observer=Silent(), checkpoints=NoCheckpoints())
    assert same(backbone.transformer.state_dict(), before)
    assert all(parameter.grad is None for parameter in backbone.transformer.parameters())


def test_one_teacher_forward_serves_all_operators_of_a_step(backbone: Backbone, latents: Latents) -> None:
    forwards: list[int] = []
    handle = backbone.transformer.register_forward_hook(lambda *_: forwards.append(1))
    distill(backbone, EDITS, PLAN, latents, observer=Silent(), checkpoints=NoCheckpoints())
    handle.remove()
    held_out = 1
    assert len(forwards) == PLAN.steps + held_out


def test_distilling_lowers_the_held_out_error(backbone: Backbone, latents: Latents) -> None:
    def error(steps: int) -> float:
        plan = PLAN.model_copy(update={"steps": steps})
        result = distill(backbone, EDITS[-1:], plan, latents, observer=Silent(), checkpoints=NoCheckpoints())
        return result[EDITS[-1].site].errors["nmse"]

    assert error(40) < 0.8 * error(0)


def test_an_interrupted_pass_ends_as_an_uninterrupted_one(backbone: Backbone, latents: Latents) -> None:
    whole = distill(backbone, EDITS[:3], PLAN, latents, observer=Silent(), checkpoints=NoCheckpoints())
    kept = MemoryCheckpoints()
    with pytest.raises(StopRequested):
        distill(backbone, EDITS[:3], PLAN, latents, observer=StopAfter(2), checkpoints=kept)
    resumed = distill(backbone, EDITS[:3], PLAN, latents, observer=Silent(), checkpoints=kept)
    assert list(kept.kept) == [2]
    for edit in EDITS[:3]:
        assert same(whole[edit.site].state, resumed[edit.site].state)
        assert whole[edit.site].curve == resumed[edit.site].curve


def test_a_loss_that_is_not_finite_names_the_site(backbone: Backbone, latents: Latents) -> None:
    broken = Latents(torch.full_like(latents.mean, float("nan")), latents.std, latents.labels)
    with pytest.raises(Diverged, match="block 0 attention gave a loss of nan at step 0"):
        distill(backbone, EDITS[:1], PLAN, broken, observer=Silent(), checkpoints=NoCheckpoints())


def test_an_operator_with_nothing_to_train_is_only_examined(backbone: Backbone, latents: Latents) -> None:
    edits = [replacement("identity"), replacement("hyena_y", 3)]
    results = distill(backbone, edits, PLAN, latents, observer=Silent(), checkpoints=NoCheckpoints())
    assert results[edits[0].site].state == {}
    assert results[edits[0].site].errors["nmse"] > results[edits[1].site].errors["nmse"] > 0
