"""Stage 1: new operators are trained to match the old ones on the unedited backbone's activations (Eq. 2).

One teacher forward serves all students. Each student has its own optimiser, clipping, learning rate, loss,
initial weights and stop reason, and its backward runs inside the teacher's hook. So activation memory does
not grow with the number of students, and each gets the weights that it would get alone.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grafting_core.backbones.base import Backbone
from grafting_core.data.latents import Latents
from grafting_core.distillation.held_out import held_out_errors
from grafting_core.distillation.student import StopReason, Student, StudentSpec, replacement_student
from grafting_core.distillation.teacher import Students, teacher_features
from grafting_core.training.observer import (
    NO_CHECKPOINTS,
    NO_OBSERVER,
    Checkpointer,
    PassObserver,
    StopRequested,
    StudentProgress,
)

__all__ = ["DistillResult", "StudentSpec", "distill", "replacement_student"]

READ_EVERY = 8
"""Steps between two transfers of losses from the device, each of which waits for the device."""


@dataclass(frozen=True)
class DistillResult:
    """Result of a student: weights (empty if it diverged) and normalised squared error on held-out images.

    `errors` as in `held_out_errors`. `curve` has (step, loss) pairs. `seconds` is its share of the pass.
    """

    state: dict[str, Tensor]
    errors: dict[str, float]
    curve: list[tuple[int, float]]
    steps: int
    seconds: float
    ending: StopReason
    reason: str = ""

    @property
    def diverged(self) -> bool:
        return self.ending == "diverged"


Done = Callable[[StudentSpec, DistillResult], None]


def distill(
    backbone: Backbone,
    specs: Sequence[StudentSpec],
    latents: Latents,
    held_out: Latents,
    *,
    observer: PassObserver = NO_OBSERVER,
    checkpoints: Checkpointer = NO_CHECKPOINTS,
    done: Done = lambda spec, result: None,
    accumulation_steps: int = 1,
) -> dict[str, DistillResult]:
    """Distil every student in one pass of the teacher; `done` is called for each as soon as it has ended.

    Operators are trained on `latents`; their errors are measured on `held_out`, images that training never
    uses.

    Students must have the same stream (`DistillPlan.stream`) and may differ in everything else. A student
    whose loss or error is not finite ends as diverged; the others continue. After an interruption every
    student resumes from the checkpoint. Raises ValueError for students of several streams or with equal keys,
    StopRequested, after a checkpoint, if the observer requests a stop. `accumulation_steps` as in `finetune`.
    """
    _check(specs)
    students = [Student(spec, backbone, accumulation_steps) for spec in specs]
    _resume(students, checkpoints)
    results: dict[str, DistillResult] = {}
    total = max((student.plan.steps for student in students), default=0)
    observer.progress(_lowest_step(students, total), total, {})
    features = None
    while True:
        _finish_stopped(backbone, students, held_out, results, done)
        training = [student for student in students if student.is_training]
        if not training:
            return results
        features = features or teacher_features(backbone, training[0].plan, latents, training)
        step = _lowest_step(students, total)
        at_step = [student for student in training if student.record.step == step]
        _take_step(features.step_students, step, at_step)
        _read_losses(training, step + 1)
        _report(students, observer, step + 1, total)
        _checkpoint_or_stop(students, observer, checkpoints, step + 1)


def _check(specs: Sequence[StudentSpec]) -> None:
    streams = {spec.plan.stream for spec in specs}
    if len(streams) > 1:
        raise ValueError(f"students of one pass must have one stream, not {len(streams)}: {streams}")
    if len({spec.key for spec in specs}) < len(specs):
        raise ValueError("students of one pass must have different keys; one key is given twice")


def _lowest_step(students: Students, total: int) -> int:
    """Lowest step of all students that still train.

    A student that is missing from the checkpoint restarts at 0 and trains alone until it has caught up.
    """
    return min((student.record.step for student in students if student.is_training), default=total)


def _take_step(step_students: Callable[[int, Students], None], step: int, students: Students) -> None:
    began = time.perf_counter()
    step_students(step, students)
    for student in students:
        student.record.seconds += (time.perf_counter() - began) / len(students)


def _read_losses(training: Students, step: int) -> None:
    """Read all losses in one transfer, at steps that depend only on the plans."""
    if step % READ_EVERY == 0 or any(student.needs_losses for student in training):
        record_losses(training)


def record_losses(students: Students) -> None:
    """Read every pending loss and let the students record theirs."""
    pending = [loss for student in students for loss in student.pending_losses]
    losses = iter(torch.stack(pending).tolist() if pending else [])
    for student in students:
        student.record_losses([next(losses) for _ in student.pending_losses])


def _report(students: Students, observer: PassObserver, step: int, total: int) -> None:
    if not any(student.pending_losses for student in students):
        observer.parts([_part(student) for student in students])
    losses = {f"loss/{s.spec.name}": s.record.loss for s in students if s.record.curve}
    mean = {"loss": sum(losses.values()) / len(losses)} if losses else {}
    observer.progress(step, total, {**mean, **losses})


def _part(student: Student) -> StudentProgress:
    record = student.record
    return StudentProgress(
        name=student.spec.name,
        step=record.step,
        total_steps=student.plan.steps,
        loss=record.loss,
        ending=record.ending,
        reason=record.reason,
    )


def _checkpoint_or_stop(
    students: Students, observer: PassObserver, checkpoints: Checkpointer, step: int
) -> None:
    stopping = any(student.is_training for student in students) and observer.stop_requested()
    if stopping or checkpoints.due():
        record_losses(students)
        checkpoints.save(step, {k: v for student in students for k, v in student.state_dict().items()})
    if stopping:
        raise StopRequested


def _resume(students: Students, checkpoints: Checkpointer) -> None:
    checkpoint = checkpoints.latest()
    if checkpoint is not None:
        for student in students:
            student.load_state_dict(checkpoint[1])


def _finish_stopped(
    backbone: Backbone,
    students: Students,
    held_out: Latents,
    results: dict[str, DistillResult],
    done: Done,
) -> None:
    """Measure held-out errors of the students that ended since the last call, in one pass."""
    ended = [student for student in students if not student.is_training and student.spec.key not in results]
    modules = {
        student.spec.key: (student.spec.capture_point, student.module)
        for student in ended
        if student.record.ending != "diverged"
    }
    errors = held_out_errors(backbone, modules, ended[0].plan, held_out) if modules else {}
    for student in ended:
        _check_finite(student, errors.get(student.spec.key, {}))
        results[student.spec.key] = _result(student, errors.get(student.spec.key, {}))
        done(student.spec, results[student.spec.key])


def _check_finite(student: Student, errors: dict[str, float]) -> None:
    bad = [f"{name} of {value}" for name, value in errors.items() if not math.isfinite(value)]
    if bad:
        student.stop("diverged", f"a held-out {bad[0]}", student.record.step)


def _result(student: Student, errors: dict[str, float]) -> DistillResult:
    record = student.record
    diverged = record.ending == "diverged"
    return DistillResult(
        state={} if diverged else student.weights(),
        errors={} if diverged else errors,
        curve=record.curve,
        steps=record.step,
        seconds=record.seconds,
        ending=record.ending or "completed",
        reason=record.reason,
    )
