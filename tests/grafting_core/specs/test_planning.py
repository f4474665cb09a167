"""Plans count what the paper and the model card count."""

import pytest

from grafting_core.specs.backbone import DIT_XL_2_256
from grafting_core.specs.cost import plan
from grafting_core.specs.documents.designs import parse_submission


def experiment(**changes: object) -> dict[str, object]:
    return {"name": "a", "backbone": "dit-xl-2-256", "preset": "paper", **changes}


def test_dit_xl_2_has_the_published_size_and_cost() -> None:
    assert DIT_XL_2_256.num_params == pytest.approx(675.13e6, abs=5e3)
    assert DIT_XL_2_256.forward_flops() / 2 == pytest.approx(118.6e9, rel=1e-3)


def test_steps_outside_the_guidance_interval_cost_one_forward() -> None:
    def flops(**evaluate: object) -> int:
        return plan(parse_submission(experiment(evaluate=evaluate))).cost.flops_per_image

    everywhere, nowhere = flops(), flops(guidance=1.0)
    assert everywhere == 2 * nowhere
    assert nowhere < flops(guidance_interval=[0.2, 2.0]) < everywhere


def test_the_teacher_is_only_evaluated() -> None:
    result = plan(parse_submission(experiment()))
    assert [stage.stage for stage in result.stages] == ["evaluate"]
    assert result.cost.num_params == result.cost.teacher_params


def test_half_hyena_x_has_the_papers_total_parameters() -> None:
    edit = {"replace": "attention", "layers": {"interleaved": 0.5}, "with": {"kind": "hyena_x"}}
    assert plan(parse_submission(experiment(edits=[edit]))).cost.num_params == pytest.approx(
        675.37e6, abs=5e3
    )


def test_fifty_thousand_steps_are_under_one_percent_of_pretraining() -> None:
    edit = {"replace": "mlp", "layers": "all", "with": {"kind": "mlp", "ratio": 4}}
    stages = {stage.stage: stage for stage in plan(parse_submission(experiment(edits=[edit]))).stages}
    share = stages["finetune"].spend.flops / DIT_XL_2_256.pretraining.flops
    assert share == pytest.approx(0.0071, abs=1e-4)


def test_a_backbone_without_weights_can_be_planned_but_not_run() -> None:
    assert not plan(parse_submission(experiment())).runnable
