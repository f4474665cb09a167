"""What routes are given: the application's database, storage and settings, and who asks."""

from dataclasses import dataclass, replace
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from grafting_core.storage.storage import Storage
from service.api.etags import check, run_tag
from service.api.event_stream import Feed
from service.api.problems import ApiError
from service.db.engine import Database
from service.db.tables import RunRow
from service.domain.api_keys import Principal
from service.domain.forecast_cache import Memory
from service.domain.run_queries import visible_to
from service.settings import Settings

NOBODY = Principal(owner="", role="viewer", sees="own")


@dataclass(frozen=True)
class Lab:
    """Everything a route may touch."""

    settings: Settings
    database: Database
    storage: Storage
    feed: Feed
    memory: Memory
    principal: Principal = NOBODY
    if_match: str | None = None
    """The version of a run that a change is meant for."""

    def run_to_change(self, session: Session, run_id: str) -> RunRow:
        """A run, locked for writing. Raises ApiError: not-found where unseen, forbidden where not theirs,
        precondition-failed where the request is about another version.
        """
        run = session.get(RunRow, run_id, with_for_update=True)
        if run is None or not visible_to(run, self.principal.only_owner):
            raise ApiError("not-found", f"there is no run {run_id!r}")
        if not self.principal.may_change(run.experiment.owner):
            raise ApiError("forbidden", f"run {run_id} is {run.experiment.owner}'s; an admin can change it")
        check(self.if_match, run_tag(run))
        return run


async def _lab(request: Request) -> Lab:
    lab: Lab = request.app.state.lab
    who = getattr(request.state, "principal", NOBODY)
    return replace(lab, principal=who, if_match=request.headers.get("if-match"))


LabDep = Annotated[Lab, Depends(_lab)]
