"""What keeps a lab in order: is the store sound, and a lost MLflow database built anew."""

from fastapi import APIRouter
from sqlalchemy import update

from service.api.deps import LabDep
from service.api.schemas import Soundness, TrackingRebuilt, ViolationView
from service.store.models import RunRow, TrackingRow
from service.store.verify import verify

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


@router.post("/tracking/rebuild")
def rebuild_tracking(lab: LabDep) -> TrackingRebuilt:
    """Project every run to MLflow from its first event. Runs that MLflow still has are found, not doubled."""
    with lab.database.writing() as session:
        forgotten = update(TrackingRow).values(mlflow_run_id=None, last_seq=0, closed=False)
        done = session.execute(forgotten)
        session.execute(update(RunRow).values(mlflow_url=None))
    return TrackingRebuilt(runs=done.rowcount)  # type: ignore[attr-defined]  # an update has one
