"""Checkpoints of runs that have ended: which may go, and letting them go.

A retry or an extension takes up the newest intact checkpoint of each stage, so that one stays until the run
is old. A run that succeeded is never taken up again. Nothing that is published under a content key (scions,
models, evaluations) is ever looked at: only `runs/<run>/checkpoints` is.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from sqlalchemy import or_, select, tuple_, update
from sqlalchemy.orm import Session

from grafting_core.storage.checksums import is_intact
from grafting_core.storage.failpoints import failpoint
from grafting_core.storage.storage import Storage
from service.db.engine import Database
from service.db.tables import RunRow, now
from service.schemas.runs import TERMINAL, RunState
from service.settings import Settings
from workers.contract import BEST, best_in, checkpoints_folder

BATCH = 500
DAY = 86_400.0
PruneStage = Literal["", "ended", "aged"]
"""How far a run's checkpoints have been looked through since it ended; `aged` leaves nothing to look for."""


@dataclass(frozen=True)
class Policy:
    """What stays of a run that has ended."""

    best: bool
    days: float

    @staticmethod
    def of(settings: Settings) -> "Policy":
        return Policy(settings.keep_best, settings.checkpoint_days)


@dataclass(frozen=True)
class EndedRun:
    """A run as it was looked at: what is decided holds only while it is still so."""

    id: str
    state: RunState
    last_event: int
    aged: bool

    @property
    def keeps_last(self) -> bool:
        """Whether a retry could take up its newest checkpoints."""
        return not self.aged and self.state != "SUCCEEDED"

    def prune_stage(self, policy: Policy) -> PruneStage:
        return "ended" if self.keeps_last or (policy.best and not self.aged) else "aged"


@dataclass(frozen=True)
class Surplus:
    """Files of one run that may go."""

    run: EndedRun
    paths: tuple[str, ...]
    bytes: int


def ended_runs(session: Session, policy: Policy, ids: Sequence[str]) -> list[EndedRun]:
    """Those of the runs that have ended."""
    query = LOOKED_AT.where(RunRow.id.in_(ids), RunRow.state.in_(TERMINAL)).order_by(RunRow.id)
    return [_seen(row, policy) for row in session.execute(query)]


def runs_to_prune(session: Session, policy: Policy, limit: int) -> list[EndedRun]:
    """Runs that have ended, or come of age, since their checkpoints were last looked through."""
    due = RunRow.checkpoints_pruned == ""
    if math.isfinite(policy.days):
        due = or_(
            due,
            (RunRow.checkpoints_pruned == "ended") & (RunRow.ended_at < now() - timedelta(days=policy.days)),
        )
    query = LOOKED_AT.where(RunRow.ended_at.is_not(None), due).order_by(RunRow.ended_at).limit(limit)
    return [_seen(row, policy) for row in session.execute(query)]


LOOKED_AT = select(RunRow.id, RunRow.state, RunRow.last_event, RunRow.ended_at)


def _seen(row: Any, policy: Policy) -> EndedRun:
    age = (now() - row.ended_at).total_seconds() / DAY
    return EndedRun(row.id, row.state, row.last_event, aged=age >= policy.days)


def left_behind(database: Database, storage: Storage, policy: Policy) -> Iterator[Surplus]:
    """What may go of all runs that have a folder, however long ago they were looked through."""
    names = storage.names("runs")
    for start in range(0, len(names), BATCH):
        with database.reading() as session:
            runs = ended_runs(session, policy, names[start : start + BATCH])
        yield from (found for run in runs if (found := surplus(storage, run, policy)).paths)


def surplus(storage: Storage, run: EndedRun, policy: Policy) -> Surplus:
    """What may go of a run's checkpoints; reads whole files where several could be the newest intact one."""
    paths = tuple(
        path for folder in _folders(storage, run.id) for path in _spare(storage, folder, run, policy)
    )
    return Surplus(run, paths, sum(_size(storage, path) for path in paths))


def _size(storage: Storage, path: str) -> int:
    try:
        return storage.size(path)
    except FileNotFoundError:
        return 0  # another one tidies up as well


def _folders(storage: Storage, run_id: str) -> list[str]:
    return [f"{checkpoints_folder(run_id)}/{stage}" for stage in storage.names(checkpoints_folder(run_id))]


def _spare(storage: Storage, folder: str, run: EndedRun, policy: Policy) -> Iterator[str]:
    names, kept = storage.names(folder), set()
    if run.keeps_last:
        kept |= _newest_intact(storage, folder, names)
    best = best_in(storage, folder) if policy.best and not run.aged else None
    if best is not None:
        kept |= {BEST, best.name}
    yield from (f"{folder}/{name}" for name in [*names, *storage.unfinished(folder)] if name not in kept)


def _newest_intact(storage: Storage, folder: str, names: Sequence[str]) -> set[str]:
    """Its name, or the only one's whatever it is worth; none where there is none."""
    found = [name for name in names if name.endswith(".safetensors")]
    if len(found) < 2:
        return set(found)
    return {next((n for n in reversed(found) if is_intact(storage, f"{folder}/{n}")), found[-1])}


def prune(database: Database, storage: Storage, spare: Surplus, policy: Policy) -> bool:
    """Delete, and note it, unless the run was taken up since it was looked at. A repetition changes nothing.

    No lock is held while storage works: before every file it is asked whether the run is still as it was. An
    attempt that begins in between reads what is left, and writes under names of its own.
    """
    for path in spare.paths:
        if not _is_as_it_was(database, spare.run):
            return False
        storage.delete(path)
        failpoint("retention/delete")
    with database.writing() as session:
        run = session.get(RunRow, spare.run.id, with_for_update=True)
        if run is None or run.state not in TERMINAL or run.last_event != spare.run.last_event:
            return False
        run.checkpoints_pruned = spare.run.prune_stage(policy)
    return True


def _is_as_it_was(database: Database, run: EndedRun) -> bool:
    query = select(RunRow.id).where(
        RunRow.id == run.id, RunRow.state.in_(TERMINAL), RunRow.last_event == run.last_event
    )
    with database.reading() as session:
        return session.scalar(query) is not None


def note_pruned(session: Session, runs: Sequence[EndedRun], policy: Policy) -> None:
    """Of runs without surplus checkpoints."""
    for stage in ("ended", "aged"):
        seen = [(run.id, run.last_event) for run in runs if run.prune_stage(policy) == stage]
        still = tuple_(RunRow.id, RunRow.last_event).in_(seen)
        session.execute(update(RunRow).where(still).values(checkpoints_pruned=stage))
