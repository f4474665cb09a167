"""The lag of MLflow behind the lab, by the lab's cursors, and whether MLflow answers."""

from datetime import datetime

from sqlalchemy import and_, func, select
from sqlalchemy.orm import Session

from service.db.engine import Database
from service.db.study_tables import StudyRow
from service.db.tables import EventRow, RunRow
from service.domain.tracking_server import check_server
from service.schemas.runs import TrackingState
from service.settings import Settings


def read_tracking(database: Database, settings: Settings) -> TrackingState:
    """Return the lag of MLflow. Reads only runs that lag."""
    with database.reading() as session:
        runs, events = session.execute(
            select(func.count(), func.coalesce(func.sum(RunRow.last_event - RunRow.mlflow_event), 0)).where(
                RunRow.last_event > RunRow.mlflow_event
            )
        ).one()
        studies = session.scalar(
            select(func.count()).select_from(StudyRow).where(StudyRow.version > StudyRow.mlflow_version)
        )
        errors = [
            session.scalar(select(func.count()).select_from(table).where(table.mlflow_error.is_not(None)))
            for table in (RunRow, StudyRow)
        ]
        return TrackingState(
            runs=runs,
            events=events,
            studies=studies or 0,
            since=_oldest(session),
            wrong=check_server(settings),
            with_errors=sum(filter(None, errors)),
        )


def _oldest(session: Session) -> datetime | None:
    next_one = and_(EventRow.run_id == RunRow.id, EventRow.seq == RunRow.mlflow_event + 1)
    query = select(func.min(EventRow.at)).select_from(RunRow).join(EventRow, next_one)
    return session.scalar(query.where(RunRow.last_event > RunRow.mlflow_event))
