"""The life of a run: which moves are allowed, and the one function that makes them."""

import secrets
import time
from datetime import timedelta
from typing import Any

from sqlalchemy.orm import Session

from service.api.schemas import TERMINAL, RunState
from service.store.models import EventRow, RunRow, now
from service.store.standings import stand
from workers.contract import Reason

MOVES: dict[RunState, frozenset[RunState]] = {
    "QUEUED": frozenset({"STARTING", "CANCELLED", "FAILED", "PAUSED"}),
    "STARTING": frozenset({"RUNNING", "QUEUED", "FAILED", "CANCELLED", "PAUSED"}),
    "RUNNING": frozenset({"SUCCEEDED", "QUEUED", "FAILED", "CANCELLED", "PAUSED"}),
    "PAUSED": frozenset({"QUEUED", "CANCELLED"}),
    "FAILED": frozenset({"QUEUED"}),
    "CANCELLED": frozenset({"QUEUED"}),
    "SUCCEEDED": frozenset(),
}

RETRIED: frozenset[Reason] = frozenset(
    {"worker_lost", "node_fault", "preempted", "storage_full", "invalid_checkpoint"}
)
"""Faults of the machine: another attempt may succeed. A diverged run or a bug would only repeat itself."""


class IllegalMove(Exception):
    """A state change that the table does not allow."""


def new_run_id() -> str:
    """Sortable by time and short enough to type a prefix of: 9 digits of time, 5 of chance, base 36."""
    return f"{_base36(int(time.time() * 1000)):0>9}{_base36(secrets.randbelow(36**5)):0>5}"


def _base36(number: int) -> str:
    digits = ""
    while number:
        number, rest = divmod(number, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[rest] + digits
    return digits or "0"


def record(session: Session, run: RunRow, kind: str, body: dict[str, Any]) -> None:
    """Append to the run's events; the number comes from the row, hence without gaps."""
    run.last_event += 1
    session.add(EventRow(run_id=run.id, seq=run.last_event, kind=kind, body=body))


def transition(
    session: Session, run: RunRow, to: RunState, reason: Reason | None = None, message: str | None = None
) -> None:
    """Move a run and record the move in the same transaction. Raises IllegalMove."""
    current: RunState = run.state  # type: ignore[assignment]  # the column holds nothing else
    if to not in MOVES[current]:
        raise IllegalMove(f"a run that is {current} cannot become {to}")
    run.state, run.reason, run.message = to, reason, message and message[:500]
    if to == "RUNNING" and run.started_at is None:
        run.started_at = now()
    run.ended_at = now() if to in TERMINAL else None
    if to == "SUCCEEDED":
        stand(session, run)
    record(
        session, run, "state", {"state": to, "reason": reason, "attempt": run.attempt, "message": run.message}
    )


def retry_or_fail(
    session: Session, run: RunRow, reason: Reason, message: str, *, max_attempts: int, retry_seconds: float
) -> None:
    """End an attempt: queue the run again where that can help, else it has failed."""
    if run.cancel_requested_at is not None:
        transition(session, run, "CANCELLED", "user_request")
    elif reason in RETRIED and run.attempt < max_attempts:
        run.not_before = now() + timedelta(seconds=min(600.0, retry_seconds * 2 ** (run.attempt - 1)))
        transition(session, run, "QUEUED", reason, message)
    else:
        transition(session, run, "FAILED", reason, message)
