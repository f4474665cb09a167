"""Submitting a design, and asking what it would cost."""

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from grafting_core.spec.experiment import Resources
from grafting_core.spec.planning import ExperimentPlan, plan
from grafting_core.spec.problems import Problem, SpecError
from grafting_core.spec.submission import Submission
from service.api.bodies import SubmittedExperiment, documented, submitted_experiment
from service.api.deps import Lab, LabDep
from service.api.problems import ApiError
from service.api.schemas import Forecast, PlanAnswer, SubmitAnswer
from service.api.submitting import IdempotencyKey, submit_once
from service.store.forecast import forecast, outstanding

router = APIRouter(prefix="/experiments", tags=["experiments"])
Body = Annotated[SubmittedExperiment, Depends(submitted_experiment)]


@router.post("", status_code=202, openapi_extra=documented(Submission))
def create_experiment(
    body: Body,
    lab: LabDep,
    response: Response,
    idempotency_key: IdempotencyKey,
) -> SubmitAnswer:
    """Keep the experiment and queue a run of it. The same Idempotency-Key gives the same run."""
    planned = plan(body.spec)
    if not planned.runnable:
        name = body.spec.design.backbone.name
        raise ApiError("not-runnable", f"{name} can be planned but not run: the lab has no weights of it")
    _check_room(body.spec.resources, lab.settings.cpus)
    expected = _forecast(lab, planned)
    run = submit_once(lab, body.spec, body.request_digest, idempotency_key, expected)
    url = f"/api/v1/runs/{run.id}"
    response.headers["Location"] = url
    return SubmitAnswer(run_id=run.id, experiment_digest=body.spec.digest, url=url)


def _check_room(asked: Resources, cpus: int) -> None:
    """Refuse at the door what the lab could never start."""
    wanted = asked.workers * asked.cpus_per_worker
    if wanted > cpus:
        message = f"{asked.workers} workers of {asked.cpus_per_worker} CPUs are {wanted}; the lab has {cpus}"
        raise SpecError([Problem(pointer="/resources", code="out-of-range", message=message)])


@router.post("/plan", openapi_extra=documented(Submission))
def plan_experiment(body: Body, lab: LabDep) -> PlanAnswer:
    """What would be done and what it would cost. Nothing is stored."""
    planned = plan(body.spec)
    return PlanAnswer(**dict(planned), forecast=_forecast(lab, planned))


def _forecast(lab: Lab, planned: ExperimentPlan) -> Forecast | None:
    with lab.database.reading() as session:
        return forecast(session, planned.experiment.backbone.name, outstanding(planned, lab.storage))
