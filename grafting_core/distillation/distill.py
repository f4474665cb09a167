"""Stage 1: new operators learn to imitate the old ones on the unedited backbone's activations (Eq. 2).

One teacher forward serves all students. Each has its own optimiser, clipping, rate, loss, first weights and
reason to stop, and its backward runs inside the teacher's hook, so activation memory does not grow with their
number and the weights are those of distilling it alone.
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
"""Steps between two readings of the losses: each makes the device wait for the program."""


@dataclass(frozen=True)
class DistillResult:
    """A student's result: weights (none where it diverged) and normalised squared error on held-out images.

    `errors` as `held_out_errors` has them. `curve` is (step, loss) pairs. `seconds` is its share of the pass.
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

    Operators learn from `latents`; their errors are measured on `held_out`, images that training never sees.

    Students may differ in everything but the stream they learn from (`DistillPlan.stream`). One whose loss
    or error is not finite ends as diverged; the others go on. After an interruption everyone continues from
    where the checkpoint has them. Raises ValueError for students of several streams or of equal keys,
    StopRequested (after a checkpoint) when asked to stop. `accumulation_steps` as `finetune` has it.
    """
    _check(specs)
    students = [Student(spec, backbone) for spec in specs]
    for student in students:
        student.accumulation_steps = accumulation_steps
    _resume(students, checkpoints)
    results: dict[str, DistillResult] = {}
    total = max((each.plan.steps for each in students), default=0)
    observer.progress(_lowest_step(students, total), total, {})
    features = None
    while True:
        _finish_stopped(backbone, students, held_out, results, done)
        learning = [each for each in students if each.learning]
        if not learning:
            return results
        features = features or teacher_features(backbone, learning[0].plan, latents, learning)
        step = _lowest_step(students, total)
        _take_step(features.step_students, step, [each for each in learning if each.record.step == step])
        _read_losses(learning, step + 1)
        _report(students, observer, step + 1, total)
        _checkpoint_or_stop(students, observer, checkpoints, step + 1)


def _check(specs: Sequence[StudentSpec]) -> None:
    streams = {spec.plan.stream for spec in specs}
    if len(streams) > 1:
        raise ValueError(f"students of one pass learn from one stream, not from {len(streams)}: {streams}")
    if len({spec.key for spec in specs}) < len(specs):
        raise ValueError("students of one pass have keys of their own; one key is given twice")


def _lowest_step(students: Students, total: int) -> int:
    """Lowest step of all students that still train.

    One that is missing from the checkpoint restarts at 0 and trains alone until it has caught up.
    """
    return min((each.record.step for each in students if each.learning), default=total)


def _take_step(step_students: Callable[[int, Students], None], step: int, students: Students) -> None:
    began = time.perf_counter()
    step_students(step, students)
    for student in students:
        student.record.seconds += (time.perf_counter() - began) / len(students)


def _read_losses(learning: Students, step: int) -> None:
    """All in one transfer, at steps that depend on the plans alone."""
    if step % READ_EVERY == 0 or any(each.at_milestone for each in learning):
        settle(learning)


def settle(students: Students) -> None:
    """Read every unread loss."""
    unread = [loss for each in students for loss in each.unread]
    losses = iter(torch.stack(unread).tolist() if unread else [])
    for each in students:
        each.settle([next(losses) for _ in each.unread])


def _report(students: Students, observer: PassObserver, step: int, total: int) -> None:
    if not any(each.unread for each in students):
        observer.parts([_part(each) for each in students])
    losses = {f"loss/{each.spec.name}": each.record.loss for each in students if each.record.curve}
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
    stopping = any(each.learning for each in students) and observer.stop_requested()
    if stopping or checkpoints.due():
        settle(students)
        checkpoints.save(step, dict(pair for each in students for pair in each.tensors()))
    if stopping:
        raise StopRequested


def _resume(students: Students, checkpoints: Checkpointer) -> None:
    found = checkpoints.latest()
    if found is not None:
        for each in students:
            each.resume(found[1])


def _finish_stopped(
    backbone: Backbone,
    students: Students,
    held_out: Latents,
    results: dict[str, DistillResult],
    done: Done,
) -> None:
    """Measure the held-out errors of the students that ended since the last call, in one pass."""
    ended = [each for each in students if not each.learning and each.spec.key not in results]
    sound = {
        each.spec.key: (each.spec.capture_point, each.module)
        for each in ended
        if each.record.ending != "diverged"
    }
    errors = held_out_errors(backbone, sound, ended[0].plan, held_out) if sound else {}
    for each in ended:
        _check_finite(each, errors.get(each.spec.key, {}))
        results[each.spec.key] = _result(each, errors.get(each.spec.key, {}))
        done(each.spec, results[each.spec.key])


def _check_finite(student: Student, errors: dict[str, float]) -> None:
    bad = [f"{name} of {value}" for name, value in errors.items() if not math.isfinite(value)]
    if bad:
        student.stop("diverged", f"a held-out {bad[0]}", student.record.step)


def _result(student: Student, errors: dict[str, float]) -> DistillResult:
    record = student.record
    diverged = record.ending == "diverged"
    return DistillResult(
        state={} if diverged else student.state(),
        errors={} if diverged else errors,
        curve=record.curve,
        steps=record.step,
        seconds=record.seconds,
        ending=record.ending or "completed",
        reason=record.reason,
    )
