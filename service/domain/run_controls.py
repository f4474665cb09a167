"""Actions that people request of runs.

A request for what is already so changes nothing; one that the state does not allow raises IllegalMove.
"""

from collections.abc import Callable, Mapping
from typing import Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from grafting_core.storage.failpoints import failpoint
from service.db.tables import EventRow, RunRow, now
from service.domain.budgets import budget_of
from service.domain.run_lifecycle import LIVE, IllegalMove, record, transition
from service.domain.submission import KeyReused
from service.schemas.runs import TERMINAL

Action = Literal["pause", "resume", "cancel", "kill", "retry"]
MAX_PRIORITY = 1000


def apply_action(session: Session, run: RunRow, action: Action) -> bool:
    """Apply an action and return whether anything changed. Raises IllegalMove."""
    before = run.last_event
    ACTIONS[action](session, run)
    failpoint(f"request/{action}")
    return run.last_event != before


def cancel(session: Session, run: RunRow) -> None:
    """Cancel a run: at once if queued or paused; if running, after the next checkpoint, or by force later."""
    _end(session, run, "cancel")


def kill(session: Session, run: RunRow) -> None:
    """Cancel a run now; work since the last checkpoint is lost."""
    _end(session, run, "kill")


def _end(session: Session, run: RunRow, request: Literal["cancel", "kill"]) -> None:
    if run.state == "CANCELLED":
        return
    _refuse_ended(run, request)
    if run.state not in LIVE:
        transition(session, run, "CANCELLED", "user_request")
    elif request == "kill" and run.kill_requested_at is None:
        run.kill_requested_at = now()
        record(session, run, "request", {"request": "kill"})
    elif request == "cancel" and run.cancel_requested_at is None:
        run.cancel_requested_at = now()
        record(session, run, "request", {"request": "cancel"})


def pause(session: Session, run: RunRow) -> None:
    """Pause a run: at once if queued; if running, after the next checkpoint."""
    _refuse_ended(run, "pause")
    if run.state == "QUEUED":
        transition(session, run, "PAUSED", "user_request")
    elif run.state in LIVE and run.pause_requested_at is None:
        run.pause_requested_at = now()
        record(session, run, "request", {"request": "pause"})


def resume(session: Session, run: RunRow) -> None:
    """Queue a paused run again, in the order of its age and priority; or withdraw a pause not yet made."""
    _refuse_ended(run, "resume")
    if run.state == "PAUSED":
        _requeue(session, run)
    elif run.pause_requested_at is not None:
        run.pause_requested_at = None
        record(session, run, "request", {"request": "resume"})


def retry(session: Session, run: RunRow) -> None:
    """Queue a run that ended without success, from its last checkpoint, with its attempts counted from
    zero.
    """
    if run.state == "SUCCEEDED":
        raise IllegalMove("a run that SUCCEEDED is complete; submit it again with `fresh: true` to repeat it")
    if run.state in TERMINAL:
        run.failures = 0
        _requeue(session, run)


def extend(session: Session, run: RunRow, device_seconds: float, key: str | None = None) -> bool:
    """Grant more device-seconds, once per key; a run that stopped on its budget is queued again.

    Raises IllegalMove if the run is complete or has no limit to extend, and KeyReused if the key was used
    with another number of seconds.
    """
    if key is not None and _granted(session, run, device_seconds, key):
        return False
    if run.state in ("SUCCEEDED", "CANCELLED"):
        raise IllegalMove(f"a run that {run.state} cannot be extended")
    if budget_of(run).device_seconds is None:
        raise IllegalMove("the run has no limit of device-seconds that could be extended")
    run.extra_device_seconds += device_seconds
    request = f"extend by {device_seconds:g} device-seconds"
    record(session, run, "request", {"request": request, "key": key, "device_seconds": device_seconds})
    failpoint("request/extend")
    if run.state == "STOPPED" and run.reason == "budget_exhausted":
        _requeue(session, run)
    return True


def _granted(session: Session, run: RunRow, device_seconds: float, key: str) -> bool:
    query = select(EventRow.body).where(EventRow.run_id == run.id, EventRow.kind == "request")
    earlier = next((body for body in session.scalars(query) if body.get("key") == key), None)
    if earlier is not None and earlier.get("device_seconds", device_seconds) != device_seconds:
        raise KeyReused(f"key {key!r} was used before: {earlier['request']}")
    return earlier is not None


def prioritise(session: Session, run: RunRow, priority: int) -> bool:
    """Set the priority: at once for a queued run, for others when they are next queued. Higher runs first."""
    _refuse_ended(run, "change the priority of")
    if run.precedence == -priority:
        return False
    run.precedence = -priority
    record(session, run, "request", {"request": f"priority {priority}"})
    failpoint("request/priority")
    return True


def _refuse_ended(run: RunRow, verb: str) -> None:
    if run.state in TERMINAL:
        raise IllegalMove(f"run {run.id} is {run.state}; {verb} needs an unfinished run")


def _requeue(session: Session, run: RunRow) -> None:
    run.cancel_requested_at = run.kill_requested_at = run.pause_requested_at = run.not_before = None
    transition(session, run, "QUEUED", "user_request")


ACTIONS: Mapping[Action, Callable[[Session, RunRow], None]] = {
    "pause": pause,
    "resume": resume,
    "cancel": cancel,
    "kill": kill,
    "retry": retry,
}
