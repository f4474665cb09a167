"""Start queued runs: decide without a lock, then claim in one short transaction."""

import logging
from collections.abc import Sequence

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from grafting_core.storage.failpoints import failpoint
from grafting_core.storage.storage import Storage
from service.db.tables import AttemptRow, RunRow
from service.domain.admission import Verdict, Walk, set_aside_text
from service.domain.artifact_dependencies import WAITS, is_there
from service.domain.budgets import budget_of
from service.domain.queue_order import COLUMNS, FreeResources, QueuedRun, room
from service.domain.run_lifecycle import transition
from service.domain.run_queries import spend_of
from service.log_once import AWAY, Once, brief
from service.settings import Settings

log = logging.getLogger("graftlab.scheduler")
say = Once(log)
Decided = tuple[QueuedRun, Verdict]
ASIDE = "set aside: "


def decide(session: Session, settings: Settings, storage: Storage) -> list[Decided]:
    """Return what a round has to do in the queue: runs to start, to end, and messages to change.

    Reads database and storage; locks and changes nothing.
    """
    capacity = FreeResources(settings.cpus, settings.gpus)
    if room(session, settings.cpus, settings.gpus).cpus <= 0:
        return []
    walk = Walk(session, capacity, settings.hold_line_seconds, lambda *place: is_there(storage, *place))
    decided: list[Decided] = []
    for run, verdict in walk.steps():
        if verdict.what != "wait" or _message(run, verdict) != run.message:
            decided.append((run, verdict))
        if walk.free.cpus <= 0:
            break
    return decided


def _message(run: QueuedRun, verdict: Verdict) -> str | None:
    """Return the message that a waiting run should have: the run it waits for, or its earlier message."""
    if verdict.lacks == "another run":
        return verdict.text
    outdated = (run.message or "").startswith((WAITS, ASIDE))
    return None if outdated else run.message


def admit(session: Session, settings: Settings, decided: Sequence[Decided], clock: float) -> list[str]:
    """Apply the decisions to runs that are still queued; return the ids of those started."""
    started = []
    for waiting, verdict in decided:
        try:
            with session.begin_nested():
                if _carry_out(session, waiting, verdict, clock + settings.start_seconds):
                    started.append(waiting.id)
        except (OSError, *AWAY):
            raise
        except Exception as error:  # noqa: BLE001 - an error with one run must not keep others from starting
            text = f"run {waiting.id}: cannot be admitted: {type(error).__name__}: {brief(error)}"
            say(waiting.id, text, trace=True)
    return started


def _carry_out(session: Session, waiting: QueuedRun, verdict: Verdict, lease_until: float) -> bool:
    """Apply a decision; True if the run was started. It may have been cancelled, paused or extended since."""
    run = session.get(RunRow, waiting.id, with_for_update=True, populate_existing=True)
    if run is None or run.state != "QUEUED":
        return False
    if verdict.what == "wait":
        run.message = _message(waiting, verdict)
    elif verdict.what == "fail":
        log.warning("run %s: %s", run.id, verdict.text)
        transition(session, run, "FAILED", "internal_error", verdict.text)
    elif budget_of(run).exceeded_by(spend_of(session, run.id)):
        transition(session, run, "STOPPED", "budget_exhausted", "the run's own budget is spent")
    elif verdict.what == "start":
        _claim(session, run, verdict, lease_until)
        return True
    return False


def _claim(session: Session, run: RunRow, verdict: Verdict, lease_until: float) -> None:
    want = verdict.want
    run.attempt += 1
    run.forecast = verdict.forecast
    run.reserved_device_seconds, run.reserved_flops = want.device_seconds, want.flops
    run.reserved_images = want.training_images
    session.add(
        AttemptRow(
            run_id=run.id,
            number=run.attempt,
            lease_until=lease_until,
            accumulation_steps=run.accumulation_steps,
        )
    )
    transition(session, run, "STARTING")
    failpoint("claim")
    log.info("run %s attempt %s: claimed", run.id, run.attempt)


def note_set_aside(session: Session, settings: Settings) -> int:
    """Set the message of queued runs that need more devices than the lab has, and return their number.

    This happens after a restart with fewer devices. The message is removed from runs that fit again.
    """
    capacity = FreeResources(settings.cpus, settings.gpus)
    beyond = or_(RunRow.cpus > settings.cpus, RunRow.gpus > settings.gpus)
    query = select(*COLUMNS).where(RunRow.state == "QUEUED", or_(beyond, RunRow.message.startswith(ASIDE)))
    aside = 0
    for row in session.execute(query).all():
        waiting = QueuedRun(*row)
        text = None if capacity.fits(waiting) else f"{ASIDE}{set_aside_text(waiting, capacity)}"
        run = session.get_one(RunRow, waiting.id, with_for_update=True)
        if run.state == "QUEUED" and run.message != text:
            run.message = text
            log.warning("run %s: %s", run.id, text or "can start again")
        aside += text is not None
    return aside
