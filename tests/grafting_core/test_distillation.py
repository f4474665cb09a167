"""Stage 1 in one pass gives the weights of distilling alone, and survives interruption to the bit."""

from collections.abc import Sequence

import pytest
import torch

from grafting_core.backbones.base import Backbone
from grafting_core.data.datasets import encode_latents
from grafting_core.data.latents import Latents
from grafting_core.distillation.distill import DistillResult, StudentSpec, distill, replacement_student
from grafting_core.specs.design import ReplaceOperator
from grafting_core.specs.plans import DistillPlan
from grafting_core.training.observer import NoCheckpoints, NullObserver, StopRequested, StudentProgress
from tests.support.builders import replacement, same
from tests.support.training import MemoryCheckpoints, StopAfter

PLAN = DistillPlan(steps=4, batch_size=8, learning_rate=1e-3, held_out=16, images=200)
KINDS = ("hyena_x", "window_attention", "mamba2", "mlp", "conv_mlp")
BLOCKS = (0, 3, 5, 7)
RATIO_2 = [replacement("mlp", block, ratio=2.0) for block in BLOCKS]
EDITS = [replacement(kind, block) for kind in KINDS for block in BLOCKS] + RATIO_2


def candidate(edit: ReplaceOperator, plan: DistillPlan = PLAN) -> StudentSpec:
    return replacement_student(edit, plan, f"{edit.site}/{edit.operator}")


CANDIDATES = [candidate(edit) for edit in EDITS]


def distilled(
    backbone: Backbone, latents: Latents, candidates: Sequence[StudentSpec] = CANDIDATES[:3]
) -> dict[str, DistillResult]:
    return distill(
        backbone, candidates, latents, latents, observer=NullObserver(), checkpoints=NoCheckpoints()
    )


def equal(one: DistillResult, two: DistillResult) -> bool:
    return same(one.state, two.state) and one.errors == two.errors and one.curve == two.curve


def forwards(backbone: Backbone, counted: list[int]) -> torch.utils.hooks.RemovableHandle:
    return backbone.transformer.register_forward_hook(lambda *_: counted.append(1))


def test_one_pass_is_bit_identical_to_distilling_each_alone(backbone: Backbone, latents: Latents) -> None:
    assert len(CANDIDATES) == 24
    together = distilled(backbone, latents, CANDIDATES)
    for each in CANDIDATES:
        assert equal(together[each.key], distilled(backbone, latents, [each])[each.key])


def test_candidates_keep_their_own_plan_in_company(backbone: Backbone, latents: Latents) -> None:
    changes = [
        {"steps": 2, "learning_rate": 1e-2},
        {"schedule": "cosine", "clip_norm": 1e-3},
        {"attention_loss": "huber", "weight_decay": 0.1},
        {"init_seed": 5, "warmup_steps": 3, "steps": 9},
        {"attention_loss": "nmse", "patience": 1, "learning_rate": 1.0},
    ]
    own = [replacement_student(EDITS[1], PLAN.model_copy(update=new), str(new)) for new in changes]
    together = distilled(backbone, latents, own)
    assert len({str(result.errors) for result in together.values()}) == len(own)
    for each in own:
        assert equal(together[each.key], distilled(backbone, latents, [each])[each.key])


def test_the_teacher_keeps_its_weights_and_gets_no_gradient(backbone: Backbone, latents: Latents) -> None:
    before = {name: value.clone() for name, value in backbone.transformer.state_dict().items()}
    distilled(backbone, latents)
    assert same(backbone.transformer.state_dict(), before)
    assert all(parameter.grad is None for parameter in backbone.transformer.parameters())
    assert not any(module._forward_hooks for module in backbone.transformer.modules())


def test_one_teacher_forward_serves_all_candidates_of_a_step(backbone: Backbone, latents: Latents) -> None:
    counted: list[int] = []
    handle = forwards(backbone, counted)
    distilled(backbone, latents, CANDIDATES)
    handle.remove()
    held_out = 1
    assert len(counted) == PLAN.steps + held_out


def test_stored_features_need_no_teacher_while_training(backbone: Backbone, latents: Latents) -> None:
    plan = PLAN.model_copy(update={"features": "stored", "batch_size": 100, "steps": 5})
    own = [candidate(edit, plan) for edit in (EDITS[0], EDITS[5], EDITS[12])]
    counted: list[int] = []
    handle = forwards(backbone, counted)
    together = distilled(backbone, latents, own)
    handle.remove()
    extraction, held_out = 2, 1
    assert len(counted) == extraction + held_out
    assert equal(together[own[1].key], distilled(backbone, latents, own[1:2])[own[1].key])


@pytest.mark.parametrize("features", ["fresh", "stored"])
def test_distilling_lowers_the_held_out_error(backbone: Backbone, latents: Latents, features: str) -> None:
    def error(steps: int) -> float:
        plan = PLAN.model_copy(update={"steps": steps, "features": features})
        (result,) = distilled(backbone, latents, [candidate(EDITS[-1], plan)]).values()
        return result.errors["nmse"]

    assert error(40) < 0.8 * error(0)


def test_an_interrupted_pass_ends_as_an_uninterrupted_one(backbone: Backbone, latents: Latents) -> None:
    short = candidate(EDITS[3], PLAN.model_copy(update={"steps": 1}))
    wild = candidate(EDITS[4], PLAN.model_copy(update={"clip_norm": 1e30, "learning_rate": float("inf")}))
    late = CANDIDATES[9]
    asked = [*CANDIDATES[:3], short, wild, late]
    whole = distilled(backbone, latents, asked)
    kept = MemoryCheckpoints()
    with pytest.raises(StopRequested):
        distill(backbone, asked[:-1], latents, latents, observer=StopAfter(2), checkpoints=kept)
    assert list(kept.kept) == [2]
    resumed = distill(backbone, asked, latents, latents, observer=NullObserver(), checkpoints=kept)
    for each in asked:
        assert equal(whole[each.key], resumed[each.key])
        assert whole[each.key].reason == resumed[each.key].reason
    assert whole[wild.key].diverged
    assert whole[short.key].steps == 1


def test_one_that_diverges_stops_alone_and_says_why(backbone: Backbone, latents: Latents) -> None:
    plan = PLAN.model_copy(update={"learning_rate": float("inf")})
    wild = replacement_student(EDITS[0], plan, "wild")
    seen: list[Sequence[StudentProgress]] = []
    ended: list[str] = []

    class Witness(NullObserver):
        def parts(self, parts: Sequence[StudentProgress]) -> None:
            seen.append(parts)

    results = distill(
        backbone,
        [wild, *CANDIDATES[:2]],
        latents,
        latents,
        observer=Witness(),
        checkpoints=NoCheckpoints(),
        done=lambda candidate, result: ended.append(candidate.key),
    )
    assert (results["wild"].ending, results["wild"].state) == ("diverged", {})
    assert results["wild"].reason == "a loss of nan at step 1"
    for each in CANDIDATES[:2]:
        assert equal(results[each.key], distilled(backbone, latents, [each])[each.key])
    assert sorted(ended) == sorted(results)
    assert [part.ending for part in seen[-1]] == ["diverged", "completed", "completed"]


def test_one_that_gets_no_better_stops_early(backbone: Backbone, latents: Latents) -> None:
    plan = PLAN.model_copy(update={"steps": 40, "patience": 4, "learning_rate": 1e-12})
    stuck = candidate(EDITS[0], plan)
    result = distilled(backbone, latents, [stuck])[stuck.key]
    assert result.ending == "plateau"
    assert result.steps % 4 == 0
    assert result.steps < 40


def test_one_pass_has_one_stream(backbone: Backbone, latents: Latents) -> None:
    other = replacement_student(EDITS[1], PLAN.model_copy(update={"seed": 1}), "other")
    with pytest.raises(ValueError, match="one stream, not 2"):
        distilled(backbone, latents, [CANDIDATES[0], other])
    with pytest.raises(ValueError, match="given twice"):
        distilled(backbone, latents, [CANDIDATES[0], CANDIDATES[0]])


def test_an_operator_with_nothing_to_train_is_only_examined(backbone: Backbone, latents: Latents) -> None:
    own = [candidate(replacement("identity")), candidate(replacement("hyena_y", 3))]
    results = distilled(backbone, latents, own)
    assert results[own[0].key].state == {}
    assert results[own[0].key].errors["nmse"] > results[own[1].key].errors["nmse"] > 0


@pytest.mark.large
def test_an_operator_that_learnt_few_images_by_heart_shows_it_on_held_out_ones(
    backbone: Backbone, held_out: Latents
) -> None:
    """Eight images are imitated far better than images that were not among them; thousands are not."""

    def errors(images: int) -> tuple[float, float]:
        latents = encode_latents(backbone, images)
        plan = DistillPlan(steps=150, batch_size=8, learning_rate=3e-3, held_out=64, images=images)
        asked = [replacement_student(replacement("mlp", 7, ratio=4.0), plan, "k")]
        observed = {"observer": NullObserver(), "checkpoints": NoCheckpoints()}
        on = [distill(backbone, asked, latents, judge, **observed)["k"] for judge in (latents, held_out)]
        assert same(on[0].state, on[1].state)
        return on[0].errors["nmse"], on[1].errors["nmse"]

    few, many = errors(8), errors(2_000)
    assert few[1] > 1.15 * few[0]
    assert many[1] == pytest.approx(many[0], rel=0.1)
    assert many[1] < few[1]
