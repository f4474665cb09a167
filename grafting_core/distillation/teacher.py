"""The teacher's activations at each capture point: from a new forward every step, or from a cache."""

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
    """Source of the teacher's inputs and outputs for the students."""

    def step_students(self, step: int, students: Students) -> None:
        """Train step i of every student, all on the same batch."""


def teacher_features(
    backbone: Backbone, plan: DistillPlan, latents: Latents, students: Students
) -> TeacherFeatures:
    """Features as the plan's `features` requires."""
    if plan.features == "fresh":
        return OnlineFeatures(backbone, plan, latents)
    return CachedFeatures(backbone, plan, latents, [student.spec.capture_point for student in students])


@dataclass(frozen=True)
class _StudentsAtPoint:
    """Trains the students of one capture point in turn, so that only one student's activations exist."""

    students: list[Student]

    def __call__(self, hidden: Tensor, target: Tensor) -> None:
        for student in self.students:
            student.train_step(hidden, target)


def _by_capture_point(students: Students) -> dict[CapturePoint, _StudentsAtPoint]:
    classes: dict[CapturePoint, _StudentsAtPoint] = {}
    for student in students:
        classes.setdefault(student.spec.capture_point, _StudentsAtPoint([])).students.append(student)
    return classes


@torch.no_grad()
def _run_teacher(backbone: Backbone, plan: DistillPlan, batch: Batch) -> None:
    with autocast(backbone.device, plan.precision):
        predict_batch(backbone, batch.to(backbone.device))


@dataclass(frozen=True)
class OnlineFeatures:
    """One teacher forward per step, on new noise and timesteps, for all students (paper Eq. 2)."""

    backbone: Backbone
    plan: DistillPlan
    latents: Latents

    def step_students(self, step: int, students: Students) -> None:
        batch = self.latents.batch("distill", self.plan.seed, step, self.plan.batch_size)
        with capture(self.backbone, _by_capture_point(students)):
            _run_teacher(self.backbone, self.plan, batch)


class CachedFeatures:
    """The paper's recipe: noise is drawn once per image, features are cached in half precision.

    Needs 4 * images * tokens * width bytes of main memory for every capture point whose input and output have
    the same width.
    """

    def __init__(
        self, backbone: Backbone, plan: DistillPlan, latents: Latents, capture_points: Iterable[CapturePoint]
    ) -> None:
        self._device, self._plan, self._latents = backbone.device, plan, latents
        self._caches: dict[CapturePoint, _FeatureCache] = {
            capture_point: _FeatureCache() for capture_point in capture_points
        }
        for first in range(0, len(latents), plan.batch_size):
            size = min(plan.batch_size, len(latents) - first)
            batch = latents.batch("stored", plan.seed, first // plan.batch_size, plan.batch_size)
            with capture(backbone, self._caches):
                _run_teacher(backbone, plan, batch.rows(slice(0, size)))
        for cache in self._caches.values():
            cache.close()

    def step_students(self, step: int, students: Students) -> None:
        rows = self._latents.rows("distill", self._plan.seed, step, self._plan.batch_size)
        for capture_point, train in _by_capture_point(students).items():
            train(*(tensor.to(self._device).float() for tensor in self._caches[capture_point].at(rows)))


@dataclass
class _FeatureCache:
    """Inputs and outputs of one capture point, in the order of extraction."""

    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)

    def __call__(self, hidden: Tensor, target: Tensor) -> None:
        self.inputs.append(hidden.half().cpu())
        self.outputs.append(target.half().cpu())

    def close(self) -> None:
        self.inputs, self.outputs = [torch.cat(self.inputs)], [torch.cat(self.outputs)]

    def at(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.inputs[0][rows], self.outputs[0][rows]
