"""Attempts that have not ended, read once per round, and the renewal of their leases."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select, tuple_, update
from sqlalchemy.orm import Session

from grafting_core.specs.budget import Budget
from service.db.tables import AttemptRow, RunRow, now
from service.domain.budgets import budget_of
from service.domain.run_lifecycle import LIVE
from service.log_once import brief
from workers.contract import submission_id


@dataclass(frozen=True)
class LiveAttempt:
    """One attempt that should be working."""

    run_id: str
    number: int
    submitted: bool
    job: str
    event_seq: int
    lease_until: float
    kill: bool
    stop_requested_at: datetime | None
    budget: Budget
    wrong: str | None = None
    """The reason the run cannot be read; such an attempt ends."""

    @property
    def key(self) -> tuple[str, int]:
        return self.run_id, self.number

    @property
    def stop_requested_seconds(self) -> float:
        """Seconds since a stop was requested; 0 if none was."""
        return (now() - self.stop_requested_at).total_seconds() if self.stop_requested_at else 0.0


def live_attempts(session: Session) -> list[LiveAttempt]:
    """Return the current attempt of every run that is starting or running."""
    query = (
        select(RunRow, AttemptRow)
        .join(AttemptRow, (AttemptRow.run_id == RunRow.id) & (AttemptRow.number == RunRow.attempt))
        .where(RunRow.state.in_(LIVE))
        .order_by(RunRow.id)
    )
    return [_live(run, attempt) for run, attempt in session.execute(query)]


def _live(run: RunRow, attempt: AttemptRow) -> LiveAttempt:
    requests = [request for request in (run.cancel_requested_at, run.pause_requested_at) if request]
    budget, wrong = Budget(), None
    try:
        budget = budget_of(run)
    except (ValueError, TypeError, KeyError) as error:
        wrong = f"its budget cannot be read: {brief(error)}"
    return LiveAttempt(
        run_id=run.id,
        number=attempt.number,
        submitted=attempt.submitted_at is not None,
        job=attempt.job or submission_id(run.id, attempt.number),
        event_seq=attempt.event_seq,
        lease_until=attempt.lease_until or 0.0,
        kill=run.kill_requested_at is not None,
        stop_requested_at=min(requests, default=None),
        budget=budget,
        wrong=wrong,
    )


def renew(session: Session, keys: list[tuple[str, int]], until: float) -> None:
    """Extend the leases of attempts with a heartbeat in one statement; ended ones stay ended."""
    alive = tuple_(AttemptRow.run_id, AttemptRow.number).in_(keys)
    session.execute(
        update(AttemptRow)
        .where(alive, AttemptRow.ended_at.is_(None))
        .values(lease_until=until)
        .execution_options(synchronize_session=False)
    )
