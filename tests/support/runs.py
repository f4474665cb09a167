"""Bring runs into a state without a worker, and make the events that workers would write."""

from sqlalchemy.orm import Session

from grafting_core.specs.budget import Usage
from service.db.engine import Database
from service.db.tables import AttemptRow, RunRow, StageRow
from service.domain.run_lifecycle import transition
from service.domain.submission import submit
from service.scheduler.loop import Scheduler
from tests.support.builders import experiment
from workers.contract import (
    STAGES,
    AttemptStarted,
    AttemptSucceeded,
    Event,
    EventBody,
    RunTicket,
    StageDone,
    StageReport,
    ticket_path,
)
from workers.events import EventLog

STARTED = AttemptStarted(host="h", pid=1, device="cpu")
FIGURES = {"fid40/fashion-cnn": 5.0, "num_params": 100.0, "flops_per_image": 1000.0}
RATE, STARTING = 1e-9, 20.0
FLOPS = {"distill": 4e10, "finetune": 1e11, "evaluate": 2e10}


def queue(database: Database, **changes: object) -> str:
    with database.writing() as session:
        return submit(session, experiment(**changes), "digest", None).id


def state(database: Database, run: str) -> tuple[str, int]:
    with database.reading() as session:
        row = session.get_one(RunRow, run)
        return row.state, row.attempt


def log_of(scheduler: Scheduler, run: str, attempt: int = 1) -> EventLog:
    ticket = scheduler.control.storage.read_model(ticket_path(run, attempt), RunTicket)
    return EventLog(scheduler.control.storage, ticket)


def write_success(log: EventLog) -> None:
    log.write(AttemptStarted(host="h", pid=1, device="cpu"))
    log.write(StageDone(report=StageReport(stage="evaluate", key="k", metrics={"fid40/fashion-cnn": 1.0})))
    log.write(AttemptSucceeded(spend=Usage()))


def started_run(session: Session, **changes: object) -> RunRow:
    """Make a run whose first attempt is starting."""
    run = submit(session, experiment(**changes), "digest", None)
    begin(session, run)
    return run


def begin(session: Session, run: RunRow) -> None:
    run.attempt += 1
    session.add(
        AttemptRow(
            run_id=run.id, number=run.attempt, event_seq=0, device_seconds=0.0, flops=0.0, training_images=0
        )
    )
    transition(session, run, "STARTING")
    session.flush()


def event(run: RunRow, seq: int, body: EventBody, attempt: int | None = None) -> Event:
    return Event(run_id=run.id, attempt=attempt or run.attempt, seq=seq, at=0.0, body=body)


def finished_run(session: Session, slowness: float = 1.0, attempts: int = 1) -> RunRow:
    """Make a run whose stages took `slowness` times the usual time."""
    run = submit(session, experiment(), "digest", None)
    run.state, run.attempt = "SUCCEEDED", attempts
    for stage in STAGES[:3]:
        spend = Usage(device_seconds=slowness * RATE * FLOPS[stage], flops=FLOPS[stage])
        report = StageReport(stage=stage, key="k", spend=spend)
        session.add(StageRow(run_id=run.id, stage=stage, attempt=1, report=report.model_dump(mode="json")))
    total = slowness * RATE * sum(FLOPS.values()) + STARTING
    session.add(AttemptRow(run_id=run.id, number=attempts, device_seconds=total, event_seq=0))
    session.flush()
    return run
