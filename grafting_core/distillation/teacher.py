"""Where apprentices see the teacher: in a fresh forward every step, or in features stored once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from grafting_core.backbones.base import Backbone
from grafting_core.backbones.capture import CapturePoint, capture
from grafting_core.data.latents import Batch, Latents, predict_batch
from grafting_core.diffusion.precision import autocast
from grafting_core.distillation.student import Student
from grafting_core.specs.plans import DistillPlan

Students = Sequence[Student]


class TeacherFeatures(Protocol):
    """A source of lessons."""

    def step_students(self, step: int, students: Students) -> None:
        """Every pupil takes step i on the same batch."""


def teacher_features(
    backbone: Backbone, plan: DistillPlan, latents: Latents, students: Students
) -> TeacherFeatures:
    """As the plan's `features` say."""
    if plan.features == "fresh":
        return OnlineFeatures(backbone, plan, latents)
    return CachedFeatures(backbone, plan, latents, [each.candidate.region for each in students])


@dataclass(frozen=True)
class _StudentsAtPoint:
    """All pupils at one region; each learns before the next one begins, so memory does not add up."""

    students: list[Student]

    def __call__(self, hidden: Tensor, target: Tensor) -> None:
        for student in self.students:
            student.learn(hidden, target)


def _by_capture_point(students: Students) -> dict[CapturePoint, _StudentsAtPoint]:
    classes: dict[CapturePoint, _StudentsAtPoint] = {}
    for student in students:
        classes.setdefault(student.candidate.region, _StudentsAtPoint([])).students.append(student)
    return classes


@torch.no_grad()
def _run_teacher(backbone: Backbone, plan: DistillPlan, batch: Batch) -> None:
    with autocast(backbone.device, plan.precision):
        predict_batch(backbone, batch.to(backbone.device))


@dataclass(frozen=True)
class OnlineFeatures:
    """One forward of the teacher a step, on new noise and timesteps, serves every pupil (paper Eq. 2)."""

    backbone: Backbone
    plan: DistillPlan
    latents: Latents

    def step_students(self, step: int, students: Students) -> None:
        batch = self.latents.batch("distill", self.plan.seed, step, self.plan.batch_size)
        with capture(self.backbone, _by_capture_point(students)):
            _run_teacher(self.backbone, self.plan, batch)


class CachedFeatures:
    """The paper's recipe: each image noised once, its features kept in half precision, epochs over them.

    Takes 4 * images * tokens * width bytes of main memory for every region with equal input and output width.
    """

    def __init__(
        self, backbone: Backbone, plan: DistillPlan, latents: Latents, regions: Iterable[CapturePoint]
    ) -> None:
        self._device, self._plan, self._latents = backbone.device, plan, latents
        self._caches: dict[CapturePoint, _FeatureCache] = {region: _FeatureCache() for region in regions}
        for first in range(0, len(latents), plan.batch_size):
            size = min(plan.batch_size, len(latents) - first)
            batch = latents.batch("stored", plan.seed, first // plan.batch_size, plan.batch_size)
            with capture(backbone, self._caches):
                _run_teacher(backbone, plan, batch.rows(slice(0, size)))
        for cache in self._caches.values():
            cache.close()

    def step_students(self, step: int, students: Students) -> None:
        rows = self._latents.rows("distill", self._plan.seed, step, self._plan.batch_size)
        for region, train in _by_capture_point(students).items():
            train(*(tensor.to(self._device).float() for tensor in self._caches[region].at(rows)))


@dataclass
class _FeatureCache:
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
