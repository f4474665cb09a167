"""Apply the events of an attempt to the state of its run; events of an outdated attempt change nothing."""

from collections.abc import Mapping

from sqlalchemy.orm import Session

from grafting_core.specs.budget import Usage
from grafting_core.specs.jobs import LAST_STAGES
from service.db.tables import AttemptRow, RunRow, StageRow
from service.domain.artifact_dependencies import share_costs
from service.domain.budgets import charge_attempt
from service.domain.registrations import keep_card
from service.domain.run_lifecycle import LIVE, after_attempt, record, transition
from service.settings import Settings
from workers.contract import (
    AttemptFailed,
    AttemptStarted,
    AttemptStopped,
    AttemptSucceeded,
    Event,
    Progress,
    Reason,
    StageDone,
    StageReport,
    StageStarted,
)


def apply_event(session: Session, settings: Settings, event: Event) -> bool:
    """Apply one event, exactly once and in order. Returns False if it is outdated, repeated or out of
    order.
    """
    run = session.get(RunRow, event.run_id, with_for_update=True)
    attempt = session.get(AttemptRow, (event.run_id, event.attempt))
    if run is None or attempt is None or not _is_next(run, attempt, event):
        return False
    attempt.event_seq = event.seq
    record(session, run, "attempt", event.model_dump(mode="json"))
    _apply(session, settings, run, attempt, event)
    return True


def _is_next(run: RunRow, attempt: AttemptRow, event: Event) -> bool:
    """Check the fencing token: only the current attempt of a live run may write, with the next event."""
    current = run.attempt == event.attempt and run.state in LIVE
    return current and event.seq == attempt.event_seq + 1


def _apply(session: Session, settings: Settings, run: RunRow, attempt: AttemptRow, event: Event) -> None:
    match event.body:
        case AttemptStarted():
            transition(session, run, "RUNNING")
        case StageStarted(stage=stage, step=step, total_steps=total):
            run.stage, run.step, run.total_steps, run.seconds_left = stage, step, total, None
        case Progress() as progress:
            run.stage, run.step, run.total_steps = progress.stage, progress.step, progress.total_steps
            run.seconds_left = progress.seconds_left
            add_spend(attempt, progress.spend)
        case StageDone(report=report):
            if session.get(StageRow, (run.id, report.stage)) is None:
                share_costs(session, run, report)
            _keep_report(session, attempt, report)
            keep_card(session, run, report)
        case AttemptSucceeded(spend=spend):
            add_spend(attempt, spend)
            _succeed(session, settings, run, attempt)
        case AttemptStopped(reason=reason, spend=spend):
            add_spend(attempt, spend)
            end_attempt(session, settings, run, attempt, reason, STOPPED.get(reason, "stopped early"))
        case AttemptFailed(reason=reason, message=message, spend=spend):
            add_spend(attempt, spend)
            end_attempt(session, settings, run, attempt, reason, message)


STOPPED: Mapping[Reason, str] = {
    "user_request": "stopped on request",
    "budget_exhausted": "the budget is spent; results are kept, and `graft extend` continues from there",
}


def _keep_report(session: Session, attempt: AttemptRow, report: StageReport) -> None:
    """Store one report per stage; a report of "reused" does not replace that of an earlier attempt."""
    row = session.get(StageRow, (attempt.run_id, report.stage))
    if row is not None and report.stop_cause == "reused":
        return
    row = row or StageRow(run_id=attempt.run_id, stage=report.stage)
    row.attempt, row.report = attempt.number, report.model_dump(mode="json")
    session.add(row)


def add_spend(attempt: AttemptRow, spend: Usage) -> None:
    """Set the attempt's total use so far; it never decreases."""
    attempt.device_seconds = max(attempt.device_seconds, spend.device_seconds)
    attempt.flops = max(attempt.flops, spend.flops)
    attempt.training_images = max(attempt.training_images, spend.training_images)


def end_attempt(
    session: Session, settings: Settings, run: RunRow, attempt: AttemptRow, reason: Reason, message: str
) -> None:
    """Charge the attempt, then queue another or end the run, as the reason's policy says."""
    charge_attempt(session, run, attempt, reason)
    limits = {"max_attempts": settings.max_attempts, "retry_seconds": settings.retry_seconds}
    after_attempt(session, run, reason, message, **limits)  # type: ignore[arg-type]  # an int and a float


def _succeed(session: Session, settings: Settings, run: RunRow, attempt: AttemptRow) -> None:
    """Mark the run as succeeded, unless its last stage is missing or a cancel was requested first."""
    last = LAST_STAGES[run.experiment.kind]
    if session.get(StageRow, (run.id, last)) is None:
        text = f"the attempt ended without its {last} stage"
        end_attempt(session, settings, run, attempt, "internal_error", text)
    elif run.cancel_requested_at is not None or run.kill_requested_at is not None:
        end_attempt(session, settings, run, attempt, "user_request", "cancelled")
    else:
        charge_attempt(session, run, attempt, None)
        transition(session, run, "SUCCEEDED")
