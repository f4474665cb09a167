"""An attempt's events become the run's state. A stale attempt's change nothing."""

from sqlalchemy.orm import Session

from grafting_core.spec.budget import Spend
from grafting_core.spec.work import LAST_STAGES
from service.settings import Settings
from service.store.bank import share_costs
from service.store.lifecycle import record, retry_or_fail, transition
from service.store.models import AttemptRow, RunRow, StageRow, now
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
    """Take one event in, exactly once and in order. False where it is stale, repeated or early."""
    run = session.get(RunRow, event.run_id, with_for_update=True)
    attempt = session.get(AttemptRow, (event.run_id, event.attempt))
    if run is None or attempt is None or not _is_next(run, attempt, event):
        return False
    attempt.event_seq = event.seq
    record(session, run, "attempt", event.model_dump(mode="json"))
    _apply(session, settings, run, attempt, event)
    return True


def _is_next(run: RunRow, attempt: AttemptRow, event: Event) -> bool:
    """The attempt number is the fencing token: only the current one of a live run may write."""
    current = run.attempt == event.attempt and run.state in ("STARTING", "RUNNING")
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
        case AttemptSucceeded(spend=spend):
            end_attempt(attempt, spend)
            _succeed(session, settings, run)
        case AttemptStopped(reason=reason, spend=spend):
            end_attempt(attempt, spend)
            _stopped(session, settings, run, reason)
        case AttemptFailed(reason=reason, message=message, spend=spend):
            end_attempt(attempt, spend)
            fail_attempt(session, settings, run, reason, message)


def _keep_report(session: Session, attempt: AttemptRow, report: StageReport) -> None:
    """One report a stage. What an earlier attempt of this run did is not overwritten by "reused"."""
    row = session.get(StageRow, (attempt.run_id, report.stage))
    if row is not None and report.stop_cause == "reused":
        return
    row = row or StageRow(run_id=attempt.run_id, stage=report.stage)
    row.attempt, row.report = attempt.number, report.model_dump(mode="json")
    session.add(row)


def add_spend(attempt: AttemptRow, spend: Spend) -> None:
    """An attempt reports its total so far, never less than before."""
    attempt.device_seconds = max(attempt.device_seconds, spend.device_seconds)
    attempt.flops = max(attempt.flops, spend.flops)
    attempt.training_images = max(attempt.training_images, spend.training_images)


def end_attempt(attempt: AttemptRow, spend: Spend) -> None:
    add_spend(attempt, spend)
    attempt.ended_at = now()


def fail_attempt(session: Session, settings: Settings, run: RunRow, reason: Reason, message: str) -> None:
    """Another attempt where the reason's policy says so, else the run has failed."""
    limits = {"max_attempts": settings.max_attempts, "retry_seconds": settings.retry_seconds}
    retry_or_fail(session, run, reason, message, **limits)  # type: ignore[arg-type]  # an int and a float


def _succeed(session: Session, settings: Settings, run: RunRow) -> None:
    last = LAST_STAGES[run.experiment.kind]
    if session.get(StageRow, (run.id, last)) is None:
        fail_attempt(session, settings, run, "internal_error", f"the attempt ended without its {last} stage")
    else:
        transition(session, run, "SUCCEEDED")


def _stopped(session: Session, settings: Settings, run: RunRow, reason: Reason) -> None:
    if reason == "user_request":
        transition(session, run, "CANCELLED", reason)
    elif reason == "budget_exhausted":
        text = "the budget is spent; submit with a larger one, and what is done will be reused"
        transition(session, run, "FAILED", reason, text)
    else:
        fail_attempt(session, settings, run, reason, "stopped before the end")
