"""What keeps a lab in order: is the store sound, and a lost MLflow database built anew."""

from typing import Annotated

from fastapi import APIRouter, Depends
from sqlalchemy import update

from grafting_core.spec.base import Frozen
from service.api.bodies import body_of, documented
from service.api.deps import Lab, LabDep
from service.api.schemas import (
    Collected,
    CollectedRun,
    Soundness,
    TrackingRebuilt,
    TrackingState,
    ViolationView,
)
from service.store.models import RunRow
from service.store.retention import Excess, Policy, left_behind, let_go
from service.store.study_models import StudyRow
from service.store.verify import verify
from service.tracking.state import read_tracking

router = APIRouter(prefix="/admin", tags=["admin"])


@router.get("/verify")
def verify_store(lab: LabDep) -> Soundness:
    """Check every invariant over the whole store and storage. Reads all of it; changes nothing."""
    with lab.database.reading() as session:
        found = verify(session, lab.storage)
    shown = [
        ViolationView(invariant=wrong.invariant, run_id=wrong.run_id, text=wrong.text) for wrong in found
    ]
    return Soundness(sound=not shown, violations=shown)


class CollectRequest(Frozen):
    """Whether only to say what would go."""

    dry_run: bool = False


@router.post("/gc", openapi_extra=documented(CollectRequest))
def collect(body: Annotated[CollectRequest, Depends(body_of(CollectRequest))], lab: LabDep) -> Collected:
    """Let go the checkpoints of ended runs that nobody can need: also those that dead workers left late."""
    policy = Policy.of(lab.settings)
    spare = left_behind(lab.database, lab.storage, policy)
    gone = [each for each in spare if body.dry_run or _let_go(lab, each, policy)]
    return Collected(
        runs=[
            CollectedRun(run_id=each.run.id, state=each.run.state, files=len(each.paths), bytes=each.bytes)
            for each in gone
        ],
        files=sum(len(each.paths) for each in gone),
        bytes=sum(each.bytes for each in gone),
        dry_run=body.dry_run,
    )


def _let_go(lab: Lab, spare: Excess, policy: Policy) -> bool:
    with lab.database.writing() as session:
        return let_go(session, lab.storage, spare, policy)


@router.post("/tracking/rebuild")
def rebuild_tracking(lab: LabDep) -> TrackingRebuilt:
    """Project every run and study to MLflow from its beginning. What it still has is found, not doubled."""
    with lab.database.writing() as session:
        nothing = {"mlflow_run_id": None, "mlflow_experiment_id": None, "mlflow_error": None}
        runs = session.execute(update(RunRow).values(mlflow_event=0, **nothing))
        studies = session.execute(update(StudyRow).values(mlflow_version=-1, **nothing))
    return TrackingRebuilt(runs=runs.rowcount, studies=studies.rowcount)  # type: ignore[attr-defined]  # updates have one


@router.get("/tracking")
def tracking_state(lab: LabDep) -> TrackingState:
    """How far MLflow is behind, since when, and why where it cannot be used."""
    return read_tracking(lab.database, lab.settings)
