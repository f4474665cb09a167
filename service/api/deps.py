"""Dependencies of the routes: database, storage, settings and the principal of the request."""

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from grafting_core.storage.storage import Storage
from service.api.event_stream import EventBroadcaster
from service.api.problems import ApiError
from service.db.engine import Database
from service.db.tables import RunRow
from service.domain import registry
from service.domain.api_keys import Principal
from service.domain.forecast_cache import ForecastCache
from service.domain.run_queries import run_detail, visible_to
from service.schemas.runs import RunDetail
from service.settings import Settings

NOBODY = Principal(owner="", role="viewer", sees="own")


@dataclass(frozen=True)
class AppContext:
    """Settings, database, storage and principal that a route uses."""

    settings: Settings
    database: Database
    storage: Storage
    feed: EventBroadcaster
    memory: ForecastCache
    principal: Principal = NOBODY

    def run_to_change(self, session: Session, run_id: str) -> RunRow:
        """Return a run locked for writing. Raises ApiError: not-found if the principal does not see it,
        forbidden if it may not change it.
        """
        run = session.get(RunRow, run_id, with_for_update=True)
        if run is None or not visible_to(run, self.principal.only_owner):
            raise ApiError("not-found", f"there is no run {run_id!r}")
        if not self.principal.may_change(run.experiment.owner):
            raise ApiError("forbidden", f"run {run_id} is {run.experiment.owner}'s; an admin can change it")
        return run

    def run_detail(self, run_id: str) -> RunDetail:
        """Return a run with its spec, progress, usage and reports. Raises ApiError if the principal does not
        see it.
        """
        with self.database.reading() as session:
            detail = run_detail(session, run_id, self.principal.only_owner)
        if detail is None:
            raise ApiError("not-found", f"there is no run {run_id!r}")
        return detail


async def _lab(request: Request) -> AppContext:
    """Return the lab as the caller sees it: registered things are known, private ones of others are not."""
    lab: AppContext = request.app.state.lab
    who = getattr(request.state, "principal", NOBODY)
    await run_in_threadpool(_refresh, lab.database)
    # Not in the thread: what is hidden is set for this request's context.
    registry.show_to(who)
    return replace(lab, principal=who)


def _refresh(database: Database) -> None:
    """Update the registry of this process; a route that needs the database reports itself if it is down."""
    with suppress(SQLAlchemyError), database.reading() as session:
        registry.refresh(session)


LabDep = Annotated[AppContext, Depends(_lab)]
