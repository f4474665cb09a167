"""What an attempt has used so far, by clock and by formula."""

import time

from grafting_core.spec.backbone import backbone_cards
from grafting_core.spec.budget import Spend
from grafting_core.spec.experiment import ExperimentSpec
from grafting_core.spec.planning import (
    design_cost,
    distill_flops_per_image,
    finetune_flops_per_image,
    image_flops,
)
from workers.contract import StageName


class Meter:
    """Device-seconds are wall-clock since `started` times devices; FLOPs and images follow from steps."""

    def __init__(self, spec: ExperimentSpec, started: float) -> None:
        card = backbone_cards()[spec.design.backbone.name]
        forward = design_cost(spec, card).flops_per_forward
        self._started = started
        self._devices = spec.resources.workers
        self._flops = {
            "distill": spec.distill.batch_size * distill_flops_per_image(spec, card),
            "finetune": spec.finetune.batch_size * finetune_flops_per_image(spec, card),
            "evaluate": image_flops(spec, card, forward),
        }
        self._images = {
            "distill": spec.distill.batch_size,
            "finetune": spec.finetune.batch_size,
            "evaluate": 0,
        }
        self._steps: dict[StageName, int] = {}

    def did(self, stage: StageName, steps: int) -> None:
        """`steps` steps of this stage were taken by this attempt, in all."""
        self._steps[stage] = steps

    def total(self) -> Spend:
        """Of this attempt, all stages together."""
        return Spend(
            device_seconds=(time.time() - self._started) * self._devices,
            flops=float(sum(self._flops[stage] * steps for stage, steps in self._steps.items())),
            training_images=sum(self._images[stage] * steps for stage, steps in self._steps.items()),
        )


def difference(later: Spend, earlier: Spend) -> Spend:
    """What was used between two readings."""
    return Spend(
        device_seconds=max(0.0, later.device_seconds - earlier.device_seconds),
        flops=later.flops - earlier.flops,
        training_images=later.training_images - earlier.training_images,
    )
