"""Files that nothing needs: leftovers of registrations, exports and removed revisions, and old exports.

They are deleted by the scheduler alone, and found in a transaction of the leader. No registration starts
meanwhile, as it is started in another such transaction.
"""

import math
import re
from collections.abc import Iterator, Sequence
from datetime import timedelta

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from grafting_core.specs.exports import export_folder
from grafting_core.specs.registration import KINDS, What, registry_folder
from grafting_core.storage.artifacts import CARD
from grafting_core.storage.storage import Storage
from service.db.registry_tables import USABLE, RegisteredRow
from service.db.tables import ExperimentRow, RunRow, now
from service.domain.registrations import work_that_names
from service.schemas.runs import TERMINAL
from workers.contract import Event, StageDone

STAGING, DELETED = ("registry/staging", "exports/staging"), "registry/deleted"
"""Folders of unfinished files, by run; and where folders are moved to be deleted."""
DIGEST = re.compile(r"[0-9a-f]{64}")


class MissingFiles(ValueError):
    """A worker says that it has registered something, and its files are not there."""


def check_published(storage: Storage, event: Event) -> None:
    """Raise MissingFiles if an event is about a revision without files."""
    made = event.body.report.registered if isinstance(event.body, StageDone) else None
    if made is not None and not storage.exists(f"{registry_folder(made.what, made.card.digest)}/{CARD}"):
        raise MissingFiles(f"the files of {made.card.name} are gone; another attempt registers them again")


def unneeded_folders(session: Session, storage: Storage, export_days: float) -> list[str]:
    """Return folders of the registry that no revision has and no registration can still use, unfinished files
    of exports that have ended, and exports older than this.
    """
    return [
        *_staging_of_ended(session, storage),
        *_without_revision(session, storage),
        *_old_exports(session, storage, export_days),
    ]


def _old_exports(session: Session, storage: Storage, days: float) -> Iterator[str]:
    """Exports whose last run ended more than `days` ago. The model that they were made of is kept."""
    keys = [] if math.isinf(days) else [name for name in storage.names("exports") if DIGEST.fullmatch(name)]
    if not keys:
        return
    recent = or_(RunRow.ended_at.is_(None), RunRow.ended_at > now() - timedelta(days=days))
    query = select(ExperimentRow.digest).join(RunRow, RunRow.experiment_id == ExperimentRow.id)
    kept = set(session.scalars(query.where(ExperimentRow.digest.in_(keys), recent)))
    yield from (export_folder(key) for key in keys if key not in kept)


def _staging_of_ended(session: Session, storage: Storage) -> Iterator[str]:
    """Folders of runs that have ended, or that this lab does not know."""
    for folder in STAGING:
        names = storage.names(folder)
        query = select(RunRow.id).where(RunRow.id.in_(names), RunRow.state.not_in(TERMINAL))
        alive = set(session.scalars(query))
        yield from (f"{folder}/{name}" for name in names if name not in alive)


def _without_revision(session: Session, storage: Storage) -> Iterator[str]:
    for what in KINDS:
        digests = [name for name in _digests(storage, what) if not _has_revision(session, what, name)]
        if not digests or _is_being_made(session, what):
            continue
        yield from (
            registry_folder(what, digest) for digest in digests if not work_that_names(session, digest)
        )


def _digests(storage: Storage, what: What) -> Sequence[str]:
    folder = registry_folder(what, "").rstrip("/")
    return [name for name in storage.names(folder) if DIGEST.fullmatch(name)]


def _has_revision(session: Session, what: What, digest: str) -> bool:
    named = RegisteredRow.state.in_((*USABLE, "registering"))
    query = select(RegisteredRow.id).where(RegisteredRow.what == what, RegisteredRow.digest == digest, named)
    return session.scalars(query.limit(1)).first() is not None


def _is_being_made(session: Session, what: What) -> bool:
    """Check whether a registration of this kind has been started: it may have published any digest, or have
    found files that it uses again.
    """
    query = select(RegisteredRow.id).join(RunRow, RunRow.id == RegisteredRow.run_id)
    started = RegisteredRow.state == "registering", RunRow.attempt > 0
    return session.scalars(query.where(RegisteredRow.what == what, *started).limit(1)).first() is not None
