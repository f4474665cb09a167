"""State machine of runs: the allowed moves, and the one function that makes them."""

import secrets
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from sqlalchemy.orm import Session

from grafting_core.storage.failpoints import failpoint
from service.db.tables import EventRow, RunRow, now
from service.domain.leaderboard_entries import upsert_entry
from service.domain.registrations import UnderWay, follow_run
from service.domain.retry_policy import POLICIES, back_off, can_split
from service.domain.webhook_outbox import announce_run
from service.log_once import plain
from service.schemas.runs import TERMINAL, RunState
from workers.contract import Reason

MOVES: Mapping[RunState, frozenset[RunState]] = {
    "QUEUED": frozenset({"STARTING", "PAUSED", "STOPPED", "FAILED", "CANCELLED"}),
    "STARTING": frozenset({"RUNNING", "QUEUED", "PAUSED", "STOPPED", "FAILED", "CANCELLED"}),
    "RUNNING": frozenset({"SUCCEEDED", "QUEUED", "PAUSED", "STOPPED", "FAILED", "CANCELLED"}),
    "PAUSED": frozenset({"QUEUED", "CANCELLED"}),
    "STOPPED": frozenset({"QUEUED"}),
    "FAILED": frozenset({"QUEUED"}),
    "CANCELLED": frozenset({"QUEUED"}),
    "SUCCEEDED": frozenset(),
}
LIVE: tuple[RunState, ...] = ("STARTING", "RUNNING")


class IllegalMove(Exception):
    """A state change that MOVES does not allow."""


def new_run_id() -> str:
    """Make an id in base 36, sortable by time and with a short unique prefix: 9 digits time, 5 random."""
    return f"{_base36(int(time.time() * 1000)):0>9}{_base36(secrets.randbelow(36**5)):0>5}"


def _base36(number: int) -> str:
    digits = ""
    while number:
        number, rest = divmod(number, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[rest] + digits
    return digits or "0"


def record(session: Session, run: RunRow, kind: str, body: dict[str, Any]) -> None:
    """Append an event to the run."""
    session.add(_numbered(run, kind, body))


def _numbered(run: RunRow, kind: str, body: dict[str, Any]) -> EventRow:
    """Make the run's next event; numbers come from the run's row and hence have no gaps."""
    run.last_event += 1
    return EventRow(run_id=run.id, seq=run.last_event, kind=kind, body=body)


def enter(session: Session, run: RunRow) -> None:
    """Store a new run with its first event; the row is written once, with the event already counted."""
    first = _numbered(run, "state", _moved(run))
    session.add(run)
    session.flush()
    session.add(first)


def _moved(run: RunRow) -> dict[str, Any]:
    return {"state": run.state, "reason": run.reason, "attempt": run.attempt, "message": run.message}


def transition(
    session: Session, run: RunRow, to: RunState, reason: Reason | None = None, message: str | None = None
) -> None:
    """Move a run; record the event and the webhook deliveries in the same transaction. Raises IllegalMove."""
    current = run.state
    if to not in MOVES[current]:
        raise IllegalMove(f"a run that is {current} cannot become {to}")
    try:
        follow_run(session, run, to, reason)
    except UnderWay as error:
        raise IllegalMove(str(error)) from error
    failpoint(move_point(current, to))
    run.state, run.reason, run.message = to, reason, message and plain(message)[:500]
    if to == "RUNNING" and run.started_at is None:
        run.started_at = now()
    run.ended_at = now() if to in TERMINAL else None
    run.checkpoints_pruned = ""
    if to == "SUCCEEDED":
        upsert_entry(session, run)
    if to not in LIVE:
        run.reserved_device_seconds = run.reserved_flops = run.reserved_images = 0
    record(session, run, "state", _moved(run))
    if to in TERMINAL:
        announce_run(session, run)


def move_point(current: RunState, to: RunState) -> str:
    """Return the name of the failpoint of a move."""
    return f"move/{current}/{to}"


def after_attempt(
    session: Session, run: RunRow, reason: Reason, message: str, *, max_attempts: int, retry_seconds: float
) -> None:
    """Move a run whose attempt ended without success, by its pending requests, else by the reason's
    policy.
    """
    policy = POLICIES[reason]
    if run.cancel_requested_at is not None or run.kill_requested_at is not None:
        return transition(session, run, "CANCELLED", "user_request")
    run.failures += policy.counted and policy.retry
    if reason == "user_request" or policy.retry:
        return _again(session, run, reason, message, max_attempts, retry_seconds)
    return transition(session, run, policy.ends, reason, message)


def _again(
    session: Session, run: RunRow, reason: Reason, message: str, max_attempts: int, retry_seconds: float
) -> None:
    policy = POLICIES[reason]
    if policy.smaller_batch and not can_split(run):
        text = f"{message}; its batch cannot be computed in smaller parts"
        return transition(session, run, "FAILED", reason, text)
    if run.failures >= max_attempts:
        return transition(session, run, "FAILED", reason, message)
    if policy.smaller_batch:
        run.accumulation_steps *= 2
    if run.pause_requested_at is not None:
        return transition(session, run, "PAUSED", reason, message)
    # A stop on a request that was withdrawn meanwhile is queued without delay.
    wait = back_off(run, retry_seconds) if policy.retry and policy.back_off else 0.0
    run.not_before = now() + timedelta(seconds=wait) if wait else None
    return transition(session, run, "QUEUED", reason, message)
