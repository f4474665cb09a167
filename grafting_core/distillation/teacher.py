"""Where apprentices see the teacher: in a fresh forward every step, or in features stored once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from grafting_core.backbones.base import Backbone
from grafting_core.backbones.capture import Region, watched
from grafting_core.data.latents import Batch, Latents, predict_batch
from grafting_core.diffusion.precision import autocast
from grafting_core.distillation.student import Apprentice
from grafting_core.specs.plans import DistillPlan

Pupils = Sequence[Apprentice]


class Teaching(Protocol):
    """A source of lessons."""

    def teach(self, step: int, pupils: Pupils) -> None:
        """Every pupil takes step i on the same batch."""


def teaching(backbone: Backbone, plan: DistillPlan, latents: Latents, apprentices: Pupils) -> Teaching:
    """As the plan's `features` say."""
    if plan.features == "fresh":
        return FreshTeaching(backbone, plan, latents)
    return StoredTeaching(backbone, plan, latents, [each.candidate.region for each in apprentices])


@dataclass(frozen=True)
class _Class:
    """All pupils at one region; each learns before the next one begins, so memory does not add up."""

    pupils: list[Apprentice]

    def __call__(self, hidden: Tensor, target: Tensor) -> None:
        for pupil in self.pupils:
            pupil.learn(hidden, target)


def _classes(pupils: Pupils) -> dict[Region, _Class]:
    classes: dict[Region, _Class] = {}
    for pupil in pupils:
        classes.setdefault(pupil.candidate.region, _Class([])).pupils.append(pupil)
    return classes


@torch.no_grad()
def _run_teacher(backbone: Backbone, plan: DistillPlan, batch: Batch) -> None:
    with autocast(backbone.device, plan.precision):
        predict_batch(backbone, batch.to(backbone.device))


@dataclass(frozen=True)
class FreshTeaching:
    """One forward of the teacher a step, on new noise and timesteps, serves every pupil (paper Eq. 2)."""

    backbone: Backbone
    plan: DistillPlan
    latents: Latents

    def teach(self, step: int, pupils: Pupils) -> None:
        batch = self.latents.batch("distill", self.plan.seed, step, self.plan.batch_size)
        with watched(self.backbone, _classes(pupils)):
            _run_teacher(self.backbone, self.plan, batch)


class StoredTeaching:
    """The paper's recipe: each image noised once, its features kept in half precision, epochs over them.

    Takes 4 * images * tokens * width bytes of main memory for every region with equal input and output width.
    """

    def __init__(
        self, backbone: Backbone, plan: DistillPlan, latents: Latents, regions: Iterable[Region]
    ) -> None:
        self._device, self._plan, self._latents = backbone.device, plan, latents
        self._shelves: dict[Region, _Shelf] = {region: _Shelf() for region in regions}
        for first in range(0, len(latents), plan.batch_size):
            size = min(plan.batch_size, len(latents) - first)
            batch = latents.batch("stored", plan.seed, first // plan.batch_size, plan.batch_size)
            with watched(backbone, self._shelves):
                _run_teacher(backbone, plan, batch.rows(slice(0, size)))
        for shelf in self._shelves.values():
            shelf.close()

    def teach(self, step: int, pupils: Pupils) -> None:
        rows = self._latents.rows("distill", self._plan.seed, step, self._plan.batch_size)
        for region, lesson in _classes(pupils).items():
            lesson(*(tensor.to(self._device).float() for tensor in self._shelves[region].at(rows)))


@dataclass
class _Shelf:
    """Inputs and outputs of one region, in the order of extraction."""

    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)

    def __call__(self, hidden: Tensor, target: Tensor) -> None:
        self.inputs.append(hidden.half().cpu())
        self.outputs.append(target.half().cpu())

    def close(self) -> None:
        self.inputs, self.outputs = [torch.cat(self.inputs)], [torch.cat(self.outputs)]

    def at(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.inputs[0][rows], self.outputs[0][rows]
