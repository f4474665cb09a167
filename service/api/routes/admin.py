"""What keeps a lab in order: is the store sound, and a lost MLflow database built anew."""

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
    """Begin to check every invariant of the database, and that every file is there and is what was written.

    Answers at once; the Location is where its progress and findings are read. `quick` reads no file. Asked
    again while one of the same kind is under way, it answers with that one. Changes nothing of the lab's.
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
    """Checks, newest first."""
    with lab.database.reading() as session:
        return check_page(session, lab.database.clock(session), limit)


@router.get("/verify/{check_id}")
def show_check(check_id: str, lab: LabDep) -> CheckView:
    """How far a check is, and what it has found once it has ended."""
    with lab.database.reading() as session:
        row = session.get(CheckRow, check_id)
        if row is None:
            raise ApiError("not-found", f"there is no check {check_id!r}")
        return check_view(row, lab.database.clock(session))


class CollectRequest(Frozen):
    """Whether only to say what would go."""

    dry_run: bool = False


@router.post("/gc")
def collect(body: CollectRequest, lab: LabDep) -> Collected:
    """Delete checkpoints of ended runs that no retry can need, those of dead workers included."""
    policy = Policy.of(lab.settings)
    spare = left_behind(lab.database, lab.storage, policy)
    gone = [each for each in spare if body.dry_run or prune(lab.database, lab.storage, each, policy)]
    return Collected(
        runs=[
            CollectedRun(run_id=each.run.id, state=each.run.state, files=len(each.paths), bytes=each.bytes)
            for each in gone
        ],
        files=sum(len(each.paths) for each in gone),
        bytes=sum(each.bytes for each in gone),
        dry_run=body.dry_run,
    )


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
