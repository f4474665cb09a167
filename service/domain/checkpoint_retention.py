"""Retention of checkpoints of ended runs: find the surplus ones and delete them.

A retry or an extension resumes from the newest intact checkpoint of each stage, so that one is kept until
the run is old. A run that succeeded is never resumed. Only `runs/<run>/checkpoints` is touched, never what
is published under a content key (scions, models, evaluations).
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
"""State of a run's pruning since it ended; after `aged` there is nothing left to prune."""


@dataclass(frozen=True)
class Policy:
    """Checkpoints to keep of an ended run: the best one, and for how many days."""

    best: bool
    days: float

    @staticmethod
    def of(settings: Settings) -> "Policy":
        return Policy(settings.keep_best, settings.checkpoint_days)


@dataclass(frozen=True)
class EndedRun:
    """An ended run at the time of the look-up; decisions hold only while it is unchanged."""

    id: str
    state: RunState
    last_event: int
    aged: bool

    @property
    def keeps_last(self) -> bool:
        """Check whether a retry could resume from its newest checkpoints."""
        return not self.aged and self.state != "SUCCEEDED"

    def prune_stage(self, policy: Policy) -> PruneStage:
        return "ended" if self.keeps_last or (policy.best and not self.aged) else "aged"


@dataclass(frozen=True)
class Surplus:
    """Checkpoint files of one run that may be deleted."""

    run: EndedRun
    paths: tuple[str, ...]
    bytes: int


def ended_runs(session: Session, policy: Policy, ids: Sequence[str]) -> list[EndedRun]:
    """Return those of the runs that have ended."""
    query = LOOKED_AT.where(RunRow.id.in_(ids), RunRow.state.in_(TERMINAL)).order_by(RunRow.id)
    return [_ended_run(row, policy) for row in session.execute(query)]


def runs_to_prune(session: Session, policy: Policy, limit: int) -> list[EndedRun]:
    """Return runs that have ended, or become old, since their checkpoints were last pruned."""
    due = RunRow.checkpoints_pruned == ""
    if math.isfinite(policy.days):
        due = or_(
            due,
            (RunRow.checkpoints_pruned == "ended") & (RunRow.ended_at < now() - timedelta(days=policy.days)),
        )
    query = LOOKED_AT.where(RunRow.ended_at.is_not(None), due).order_by(RunRow.ended_at).limit(limit)
    return [_ended_run(row, policy) for row in session.execute(query)]


LOOKED_AT = select(RunRow.id, RunRow.state, RunRow.last_event, RunRow.ended_at)


def _ended_run(row: Any, policy: Policy) -> EndedRun:
    age = (now() - row.ended_at).total_seconds() / DAY
    return EndedRun(row.id, row.state, row.last_event, aged=age >= policy.days)


def left_behind(database: Database, storage: Storage, policy: Policy) -> Iterator[Surplus]:
    """Yield the surplus of all runs that have a folder, whenever they were last pruned."""
    names = storage.names("runs")
    for start in range(0, len(names), BATCH):
        with database.reading() as session:
            runs = ended_runs(session, policy, names[start : start + BATCH])
        yield from (files for run in runs if (files := surplus(storage, run, policy)).paths)


def surplus(storage: Storage, run: EndedRun, policy: Policy) -> Surplus:
    """Find a run's surplus checkpoints; reads whole files if several could be the newest intact one."""
    paths = tuple(
        path for folder in _folders(storage, run.id) for path in _surplus_in(storage, folder, run, policy)
    )
    return Surplus(run, paths, sum(_size(storage, path) for path in paths))


def _size(storage: Storage, path: str) -> int:
    try:
        return storage.size(path)
    except FileNotFoundError:
        return 0  # another process deletes too


def _folders(storage: Storage, run_id: str) -> list[str]:
    return [f"{checkpoints_folder(run_id)}/{stage}" for stage in storage.names(checkpoints_folder(run_id))]


def _surplus_in(storage: Storage, folder: str, run: EndedRun, policy: Policy) -> Iterator[str]:
    names, kept = storage.names(folder), set()
    if run.keeps_last:
        kept |= _newest_intact(storage, folder, names)
    best = best_in(storage, folder) if policy.best and not run.aged else None
    if best is not None:
        kept |= {BEST, best.name}
    yield from (f"{folder}/{name}" for name in [*names, *storage.unfinished(folder)] if name not in kept)


def _newest_intact(storage: Storage, folder: str, names: Sequence[str]) -> set[str]:
    """Return the name of the newest intact file, or of the only file in any state; empty if there is none."""
    checkpoints = [name for name in names if name.endswith(".safetensors")]
    if len(checkpoints) < 2:
        return set(checkpoints)
    return {next((n for n in reversed(checkpoints) if is_intact(storage, f"{folder}/{n}")), checkpoints[-1])}


def prune(database: Database, storage: Storage, files: Surplus, policy: Policy) -> bool:
    """Delete the files and record it, unless the run changed since the look-up. Returns whether it was
    recorded.

    No lock is held during storage operations: before every file the run is checked to be unchanged. An
    attempt that starts in between reads the remaining checkpoints and writes under its own names.
    """
    for path in files.paths:
        if not _is_as_it_was(database, files.run):
            return False
        storage.delete(path)
        failpoint("retention/delete")
    with database.writing() as session:
        run = session.get(RunRow, files.run.id, with_for_update=True)
        if run is None or run.state not in TERMINAL or run.last_event != files.run.last_event:
            return False
        run.checkpoints_pruned = files.run.prune_stage(policy)
    return True


def _is_as_it_was(database: Database, run: EndedRun) -> bool:
    query = select(RunRow.id).where(
        RunRow.id == run.id, RunRow.state.in_(TERMINAL), RunRow.last_event == run.last_event
    )
    with database.reading() as session:
        return session.scalar(query) is not None


def note_pruned(session: Session, runs: Sequence[EndedRun], policy: Policy) -> None:
    """Record runs without surplus checkpoints as pruned."""
    for stage in ("ended", "aged"):
        unchanged = [(run.id, run.last_event) for run in runs if run.prune_stage(policy) == stage]
        still = tuple_(RunRow.id, RunRow.last_event).in_(unchanged)
        session.execute(update(RunRow).where(still).values(checkpoints_pruned=stage))
