"""Points of a study's step curves: its backbone and its best promoted design with fewer sampling steps.

The number of sampling steps is not part of the key of finetuned weights, so every point is only another
evaluation of existing weights.
"""

from dataclasses import dataclass

from sqlalchemy.orm import Session

from grafting_core.specs.budget import Budget
from grafting_core.specs.experiment import ExperimentSpec
from grafting_core.specs.studies.study import StudySpec, samples_of
from service.db.study_tables import StudyRow
from service.domain.studies import spec_of_study, submit_for, trials_of
from service.domain.study_queries import EVALUATED, study_detail
from service.schemas.studies import StudyDetail, StudyRun


@dataclass(frozen=True)
class Point:
    """A trial, or None for the backbone, with a number of sampling steps."""

    trial: int | None
    steps: int

    @property
    def label(self) -> str:
        name = "teacher" if self.trial is None else f"trial {self.trial}"
        return f"{name}, {self.steps} steps"


def curve_steps(spec: StudySpec) -> tuple[int, ...]:
    """Return the protocol's number of sampling steps and the study's shares of it, in descending order.

    Returns an empty tuple if the study has no step curve, or if its quality is a loss, which needs no
    sampling.
    """
    whole = spec.evaluate.sampling_steps
    if not spec.step_curve or samples_of(spec.quality.split("/")[0]) is None:
        return ()
    fewer = {max(1, round(share * whole)) for share in spec.step_curve}
    return tuple(sorted({whole, *fewer}, reverse=True))


def curve_points(detail: StudyDetail) -> list[Point]:
    """Return the points of both curves, most steps first; none before a promoted design is finished."""
    if detail.best_trial is None:
        return []
    return [Point(trial, steps) for steps in curve_steps(detail.spec) for trial in (None, detail.best_trial)]


def sampled_runs(detail: StudyDetail) -> dict[Point, StudyRun]:
    """Return every evaluation of the study by what it sampled, whatever its state."""
    return {
        Point(run.trial, run.sampling_steps): run
        for run in detail.runs
        if run.role in EVALUATED and run.sampling_steps is not None
    }


def submit_curves(session: Session, study: StudyRow, budget: Budget) -> int:
    """Queue the points for which the study has no run yet, and return their number."""
    detail = study_detail(session, study)
    existing = sampled_runs(detail)
    missing = [point for point in curve_points(detail) if point not in existing]
    assignments = {trial.number: trial.assignment for trial in trials_of(session, study.id)}
    for point in missing:
        assignment = {} if point.trial is None else assignments[point.trial]
        work = _work(spec_of_study(study), point, assignment, budget)
        submit_for(session, study, work, "curve", point.label, point.trial)
    return len(missing)


def _work(spec: StudySpec, point: Point, assignment: dict[str, str], budget: Budget) -> ExperimentSpec:
    design = spec.space.design(() if point.trial is None else spec.space.chosen(assignment))
    experiment = spec.experiment(f"{spec.name}: {point.label}", design, budget)
    protocol = spec.evaluate.model_copy(update={"sampling_steps": point.steps})
    return experiment.model_copy(update={"evaluate": protocol})
