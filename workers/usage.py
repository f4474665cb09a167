"""Usage of an attempt so far: device-seconds by clock, FLOPs and images by formula."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from grafting_core.specs.analysis import AnalysisSpec
from grafting_core.specs.backbone import card_of
from grafting_core.specs.budget import Usage
from grafting_core.specs.cost import (
    design_cost,
    distill_flops_per_image,
    finetune_flops_per_image,
    image_flops,
    pass_flops_per_image,
)
from grafting_core.specs.experiment import ExperimentSpec
from grafting_core.specs.exports import ExportSpec
from grafting_core.specs.filling import FillSpec
from grafting_core.specs.jobs import Job
from grafting_core.specs.latency import MOST_ROUNDS, LatencySpec
from grafting_core.specs.registration import RegistrationSpec
from grafting_core.specs.rungs import rung_cost
from grafting_core.specs.screening import ScreeningSpec
from workers.contract import StageName


@dataclass(frozen=True)
class StepCost:
    """FLOPs and training images of one step of a stage."""

    flops: float
    images: int = 0


StepCosts = Mapping[StageName, StepCost]


def _graft_costs(spec: ExperimentSpec) -> StepCosts:
    card = card_of(spec.backbone)
    forward = design_cost(spec, card).flops_per_forward
    distill, finetune = spec.distill.batch_size, spec.finetune.batch_size
    return {
        "distill": StepCost(distill * distill_flops_per_image(spec, card), distill),
        "finetune": StepCost(finetune * finetune_flops_per_image(spec, card), finetune),
        "evaluate": StepCost(image_flops(spec.evaluate, card, forward)),
    }


def _fill_costs(spec: FillSpec) -> StepCosts:
    card, batch = card_of(spec.backbone), spec.plan.batch_size
    flops = pass_flops_per_image(card, [scion.part for scion in spec.scions])
    return {"distill": StepCost(batch * flops, batch)}


def _analysis_costs(spec: AnalysisSpec) -> StepCosts:
    """One step is one sample: all its sampling steps, each with both forwards of guidance."""
    forward = card_of(spec.backbone).forward_flops()
    return {"analyze": StepCost(2 * spec.sampling_steps * forward)}


def _screening_costs(spec: ScreeningSpec) -> StepCosts:
    """One step is one hybrid on one rung; its cost is the mean over all rungs."""
    card = card_of(spec.backbone)
    counts, total, remaining = 0, 0.0, len(spec.designs)
    for rung in spec.rungs:
        teacher = card.forward_flops()
        total += remaining * rung_cost(rung, teacher, image_flops(spec.evaluate, card, teacher))
        counts += remaining
        remaining = spec.survivors_of(remaining)
    return {"screen": StepCost(total / counts)}


def _latency_costs(spec: LatencySpec) -> StepCosts:
    """One step is one row: at most `MOST_ROUNDS` rounds of three forwards, each about the backbone's."""
    forward = card_of(spec.backbone).forward_flops()
    return {"measure": StepCost(3.0 * MOST_ROUNDS * spec.batch * forward)}


def _registration_costs(spec: RegistrationSpec) -> StepCosts:
    """What it reads and checks takes time alone."""
    return {"register": StepCost(0.0)}


def _export_costs(spec: ExportSpec) -> StepCosts:
    """Writing files takes time alone."""
    return {"export": StepCost(0.0)}


COSTS: Mapping[str, Callable[[Any], StepCosts]] = {
    "graft": _graft_costs,
    "fill": _fill_costs,
    "analysis": _analysis_costs,
    "screening": _screening_costs,
    "latency": _latency_costs,
    "registration": _registration_costs,
    "export": _export_costs,
}
"""Kind of work -> cost of one step of each of its stages."""


class UsageMeter:
    """Meter of one attempt: device-seconds by clock since `started`, FLOPs and images by steps."""

    def __init__(self, work: Job, started: float) -> None:
        # The wall clock is read only once, here: later jumps of it do not matter.
        self._began = time.monotonic() - max(0.0, time.time() - started)
        self._devices = work.resources.devices
        self._costs = dict(COSTS[work.kind](work))
        self._steps: dict[StageName, int] = {}

    def set_step_cost(self, stage: StageName, cost: StepCost) -> None:
        """Replace the cost of one step of a stage, for stages that do less than the formula assumes."""
        self._costs[stage] = cost

    def record(self, stage: StageName, steps: int) -> None:
        """Set the number of steps of a stage that this attempt has done so far."""
        self._steps[stage] = steps

    def total(self) -> Usage:
        """Usage of this attempt, all stages together."""
        return Usage(
            device_seconds=(time.monotonic() - self._began) * self._devices,
            flops=float(sum(self._costs[stage].flops * steps for stage, steps in self._steps.items())),
            training_images=sum(self._costs[stage].images * steps for stage, steps in self._steps.items()),
        )


def difference(later: Usage, earlier: Usage) -> Usage:
    """Usage between two readings of the meter."""
    return Usage(
        device_seconds=max(0.0, later.device_seconds - earlier.device_seconds),
        flops=later.flops - earlier.flops,
        training_images=later.training_images - earlier.training_images,
    )
