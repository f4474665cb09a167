"""Administration: checks of the store, clean-up of checkpoints, and rebuilding a lost MLflow database."""

from typing import Annotated

from fastapi import APIRouter, Query, Response
from sqlalchemy import update

from grafting_core.specs.base import Frozen
from service.api.deps import LabDep
from service.api.documents import DocumentRoute
from service.api.problems import ApiError
from service.db.check_tables import CheckRow
from service.db.study_tables import StudyRow
from service.db.tables import RunRow
from service.domain.check_jobs import Checking, begin, check_page, check_view
from service.domain.checkpoint_retention import Policy, left_behind, prune
from service.domain.tracking_state import read_tracking
from service.schemas.checks import CheckPage, CheckRequest, CheckView
from service.schemas.runs import Collected, CollectedRun, TrackingRebuilt, TrackingState

router = APIRouter(prefix="/admin", tags=["admin"], route_class=DocumentRoute)


@router.post("/verify", status_code=202)
def begin_check(body: CheckRequest, lab: LabDep, response: Response) -> CheckView:
    """Start a check of all invariants of the database and of the presence and content of every file.

    Answers at once; the Location serves its progress and findings. `quick` reads no files. While a check
    of the same kind is running, the answer is that one. It changes nothing in the lab.
    """
    with lab.database.writing() as session:
        row, is_new = begin(session, lab.database.clock(session), quick=body.quick)
        view = check_view(row, lab.database.clock(session))
    if is_new:
        Checking(lab.database, lab.storage, view.id, view.quick).start()
    response.headers["Location"] = f"/api/v1/admin/verify/{view.id}"
    return view


@router.get("/verify")
def list_checks(lab: LabDep, limit: Annotated[int, Query(ge=1, le=200)] = 50) -> CheckPage:
    """List checks, newest first."""
    with lab.database.reading() as session:
        return check_page(session, lab.database.clock(session), limit)


@router.get("/verify/{check_id}")
def show_check(check_id: str, lab: LabDep) -> CheckView:
    """Return a check's progress, and its findings once it has ended."""
    with lab.database.reading() as session:
        row = session.get(CheckRow, check_id)
        if row is None:
            raise ApiError("not-found", f"there is no check {check_id!r}")
        return check_view(row, lab.database.clock(session))


class CollectRequest(Frozen):
    """Options of the clean-up. `dry_run` only lists what would be deleted."""

    dry_run: bool = False


@router.post("/gc")
def collect(body: CollectRequest, lab: LabDep) -> Collected:
    """Delete checkpoints of ended runs that no retry can need, those of dead workers included."""
    policy = Policy.of(lab.settings)
    surplus = left_behind(lab.database, lab.storage, policy)
    deleted = [item for item in surplus if body.dry_run or prune(lab.database, lab.storage, item, policy)]
    return Collected(
        runs=[
            CollectedRun(run_id=item.run.id, state=item.run.state, files=len(item.paths), bytes=item.bytes)
            for item in deleted
        ],
        files=sum(len(item.paths) for item in deleted),
        bytes=sum(item.bytes for item in deleted),
        dry_run=body.dry_run,
    )


@router.post("/tracking/rebuild")
def rebuild_tracking(lab: LabDep) -> TrackingRebuilt:
    """Send every run and study to MLflow again, from the beginning. Existing entries are reused, not
    doubled.
    """
    with lab.database.writing() as session:
        nothing = {"mlflow_run_id": None, "mlflow_experiment_id": None, "mlflow_error": None}
        runs = session.execute(update(RunRow).values(mlflow_event=0, **nothing))
        studies = session.execute(update(StudyRow).values(mlflow_version=-1, **nothing))
    return TrackingRebuilt(runs=runs.rowcount, studies=studies.rowcount)  # type: ignore[attr-defined]  # updates have one


@router.get("/tracking")
def tracking_state(lab: LabDep) -> TrackingState:
    """Return how far MLflow lags behind, since when, and its error if it cannot be used."""
    return read_tracking(lab.database, lab.settings)
