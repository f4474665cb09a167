"""Routes of experiments: submit a design, and plan its cost."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from grafting_core.specs.cost import ExperimentPlan, plan
from grafting_core.specs.documents.designs import Submission, parse_submission
from grafting_core.specs.experiment import ExperimentSpec
from service.api.deps import AppContext, LabDep
from service.api.documents import DocumentRoute, Unresolved
from service.api.idempotency import (
    IdempotencyKey,
    accepted,
    check_chargeable,
    check_startable,
    submit_once,
)
from service.domain.backbone_profiles import completed_card
from service.domain.bank_catalog import holdings
from service.domain.forecast import outstanding, predicted
from service.domain.run_controls import MAX_PRIORITY
from service.domain.submission import QueueOptions
from service.domain.visibility import shown_to
from service.schemas.runs import Forecast, PlanAnswer, SubmitAnswer

router = APIRouter(prefix="/experiments", tags=["experiments"], route_class=DocumentRoute)


@router.post("", status_code=202)
def create_experiment(
    body: Unresolved[Submission],
    lab: LabDep,
    response: Response,
    idempotency_key: IdempotencyKey,
    priority: Annotated[int, Query(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] = 0,
    tag: Annotated[str | None, Query(max_length=64, pattern=r"^[A-Za-z0-9._@-]+$")] = None,
) -> SubmitAnswer:
    """Store the experiment and queue a run of it. The same Idempotency-Key returns the same run.

    Higher priorities run first. `tag` is a label whose account is charged in addition to the user's; the id
    of a study is the tag of its runs, and is refused if another user created the study.
    """
    spec = _resolved(body, lab)
    check_startable(lab, spec)
    check_chargeable(lab, tag)
    planned = plan(spec)
    expected = _forecast(lab, planned)
    placing = QueueOptions(tag, priority)
    run = submit_once(lab, spec, body.request_digest, idempotency_key, expected, placing)
    return accepted(response, run, planned.notes)


@router.post("/plan")
def plan_experiment(body: Unresolved[Submission], lab: LabDep) -> PlanAnswer:
    """Plan a submission: the work to do and its cost. Nothing is stored."""
    planned, only = plan(_resolved(body, lab)), lab.principal.only_owner
    with lab.database.reading() as session:
        held = [
            stage.model_copy(update={"waits_for": sorted(shown_to(session, only, stage.waits_for))})
            for stage in holdings(session, lab.storage, planned)
        ]
    return PlanAnswer(**dict(planned), forecast=_forecast(lab, planned), holdings=held)


def _resolved(body: Unresolved[Submission], lab: AppContext) -> ExperimentSpec:
    """Return the spec of a submission; selectors are resolved with the lab's measurements. Raises
    SpecError.
    """
    return parse_submission(body.document, lambda card: completed_card(lab.database, lab.storage, card))


def _forecast(lab: AppContext, planned: ExperimentPlan) -> Forecast | None:
    with lab.database.reading() as session:
        past = lab.memory.past(session, planned.experiment.backbone.name)
    return predicted(past, outstanding(planned, lab.storage), planned.experiment.resources.devices)
