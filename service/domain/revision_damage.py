"""Revisions whose files are not as they were registered: marked by a check, healed by registering again."""

from typing import Literal

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from grafting_core.specs.jobs import Job
from grafting_core.specs.registration import TABLES, What
from service.db.registry_tables import RegisteredRow
from service.domain.named_revisions import revisions_named_by


class DamagedRevision(ValueError):
    """Work names a revision whose files are damaged; the text says what to do."""


def check_intact(session: Session, work: Job) -> None:
    """Raise DamagedRevision if the work names a damaged revision."""
    for what, named in revisions_named_by(work).items():
        damaged = RegisteredRow.digest.in_(named), RegisteredRow.state == "damaged"
        query = select(RegisteredRow.digest).where(RegisteredRow.what == what, *damaged)
        found = session.scalars(query.limit(1)).first() if named else None
        if found is not None:
            raise DamagedRevision(
                f"the {TABLES[what].what} {named[found]} ({found[:12]}) is damaged: its files are not those "
                "that were registered; register it again from its source"
            )


def mark(session: Session, what: What, digest: str, state: Literal["ready", "damaged"]) -> None:
    """Set the state of the usable revisions with these files, under whatever names."""
    usable = RegisteredRow.state.in_(("ready", "damaged"))
    rows = update(RegisteredRow).where(RegisteredRow.what == what, RegisteredRow.digest == digest, usable)
    session.execute(rows.values(state=state))
