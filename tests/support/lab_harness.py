"""A scheduler over a real database and real storage; the test acts as cluster and workers."""

from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from grafting_core.specs.budget import Usage
from grafting_core.storage.storage import Storage
from service.db.engine import Database
from service.db.leader_lease import LostLeadership
from service.db.tables import RunRow
from service.domain.invariants import Violation, verify
from service.domain.run_controls import Action, apply_action
from service.domain.run_lifecycle import LIVE
from service.domain.submission import submit
from service.scheduler.loop import Scheduler
from service.schemas.runs import TERMINAL, RunState
from service.settings import Settings
from tests.support.builders import experiment
from tests.support.control import new_scheduler
from tests.support.fakes import FolderCluster
from tests.support.runs import STARTED
from workers.contract import (
    AttemptSucceeded,
    EventBody,
    RunTicket,
    StageDone,
    StageReport,
    attempt_folder,
    ticket_path,
)
from workers.events import EventLog


class LabHarness:
    """One scheduler and the workers of its runs."""

    def __init__(self, folder: Path, database: Database | None = None) -> None:
        url = database.url if database else ""
        limits = {"cpus": 4, "retry_seconds": 0.0, "lead_seconds": 60.0}
        self.settings = Settings(data_dir=folder, database_url=url, **limits)  # type: ignore[arg-type]  # floats
        self.database = database or Database(self.settings.database_url)
        self.storage = Storage(self.settings.storage)
        self.cluster = FolderCluster(folder / "cluster")
        self.scheduler = self.new_scheduler()

    def new_scheduler(self) -> Scheduler:
        return new_scheduler(self.settings, self.database, self.cluster)

    def submit(self, owner: str = "ann", key: str | None = None, **changes: Any) -> str:
        with self.database.writing() as session:
            return submit(session, experiment(**changes), "digest", key, None, owner).id

    def round(self, count: int = 1) -> None:
        """Run rounds like the process does: a fault ends one round, not the loop."""
        for _ in range(count):
            self.scheduler.reconciler.forget()
            try:
                self.scheduler.round()
            except (OSError, SQLAlchemyError, LostLeadership):
                continue

    def apply_action(self, run: str, action: Action) -> None:
        with self.database.writing() as session:
            apply_action(session, session.get_one(RunRow, run, with_for_update=True), action)

    def state(self, run: str) -> RunState:
        return self.states()[run][0]

    def states(self) -> dict[str, tuple[RunState, int]]:
        with self.database.reading() as session:
            return {run.id: (run.state, run.attempt) for run in session.scalars(select(RunRow))}  # type: ignore[misc]

    def say(self, run: str, *bodies: EventBody, attempt: int | None = None) -> None:
        """Write events as the worker of an attempt."""
        number = attempt or self.states()[run][1]
        log = EventLog(self.storage, self.storage.read_model(ticket_path(run, number), RunTicket))
        for body in bodies:
            log.write(body)

    def started(self, run: str) -> None:
        """Run rounds until the run's attempt is running."""
        self.round(2)
        self.say(run, STARTED)
        self.round()

    def lose(self, run: str) -> None:
        """End the run's job without a last event."""
        self.cluster.end(f"run-{run}-{self.states()[run][1]}", "FAILED")

    def finish(self, run: str, attempt: int | None = None) -> None:
        """Finish the run's stages as its worker, unless it has already ended."""
        number = attempt or self.states()[run][1]
        folder = f"{attempt_folder(run, number)}/events"
        if not self.storage.exists(ticket_path(run, number)):
            return
        done = len(self.storage.names(folder))
        bodies: list[EventBody] = [
            STARTED,
            StageDone(report=StageReport(stage="evaluate", key="k", metrics={"fid40/fashion-cnn": 1.0})),
            AttemptSucceeded(spend=Usage(device_seconds=3.0)),
        ]
        self.say(run, *bodies[min(done, 3) :], attempt=number)

    def drain(self) -> dict[str, tuple[RunState, int]]:
        """Run rounds without faults until every run has ended; workers finish, and paused runs are
        resumed.
        """
        for _ in range(40 + 4 * len(self.states())):
            self.round()
            for run, (state, _) in self.states().items():
                if state == "PAUSED":
                    self.apply_action(run, "resume")
                elif state in LIVE:
                    self.finish(run)
            if all(state in TERMINAL for state, _ in self.states().values()):
                break
        return self.states()

    def violations(self) -> list[Violation]:
        with self.database.reading() as session:
            return verify(session)
