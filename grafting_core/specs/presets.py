"""Presets: named settings of all three stages."""

from typing import Literal, get_args

from grafting_core.specs.base import Frozen
from grafting_core.specs.plans import DistillPlan, EvaluationProtocol, FinetunePlan

PresetName = Literal["demo", "paper"]
PRESET_NAMES: tuple[str, ...] = get_args(PresetName)


class Preset(Frozen):
    """Settings of the three stages that belong together."""

    distill: DistillPlan
    finetune: FinetunePlan
    evaluate: EvaluationProtocol


PRESETS: dict[str, Preset] = {
    # The paper's protocol (sections 2, 3.3 and 4.1); hours of a GPU node.
    # Its released code trains both stages in bfloat16.
    "paper": Preset(
        distill=DistillPlan(precision="bfloat16"),
        finetune=FinetunePlan(precision="bfloat16"),
        evaluate=EvaluationProtocol(),
    ),
    # Minutes of one CPU core on a backbone of a few million parameters, large enough for stable rankings.
    "demo": Preset(
        distill=DistillPlan(
            steps=170, batch_size=64, learning_rate=2e-3, schedule="cosine", warmup_steps=20, images=6_000
        ),
        finetune=FinetunePlan(
            steps=130,
            batch_size=64,
            learning_rate=3e-4,
            schedule="cosine",
            warmup_steps=20,
            ema_decay=0.98,
            images=6_000,
        ),
        evaluate=EvaluationProtocol(
            samples=1_000,
            sampler="ddim",
            sampling_steps=10,
            guidance_channels="all",
            labels="balanced",
            micro_batch=50,
        ),
    ),
}
