"""The level-triggered loop: compare what should be with what is, and take the next step."""

import logging
import shlex
import time
from dataclasses import dataclass

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from grafting_core.storage import Storage
from service.scheduler.intake import apply_event, fail_attempt
from service.scheduler.leadership import Leadership
from service.scheduler.ray_jobs import FINISHED, RayJobs, RayUnavailable
from service.settings import Settings
from service.store.bank import hold
from service.store.engine import Database
from service.store.lifecycle import transition
from service.store.models import AttemptRow, RunRow, now
from service.store.queries import spend_of, work_of
from workers.contract import (
    Event,
    RunTicket,
    Stop,
    attempt_folder,
    event_path,
    submission_id,
    ticket_path,
)

log = logging.getLogger("graftlab.scheduler")
LIVE = ("STARTING", "RUNNING")
STATUS_SECONDS = 3.0
"""How often Ray is asked after an attempt that shows life."""


@dataclass
class Watch:
    """What this process has seen of one attempt, by its own monotonic clock."""

    beat: bytes
    seen: float
    asked: float = 0.0
    stop_written: bool = False


class Scheduler:
    """Claims queued runs, submits them to Ray, takes their events in, and ends what is lost."""

    def __init__(self, settings: Settings, database: Database, storage: Storage, ray: RayJobs) -> None:
        self.settings, self.database, self.storage, self.ray = settings, database, storage, ray
        self.leadership = Leadership(database, settings.lead_seconds)
        self._watched: dict[tuple[str, int], Watch] = {}

    def round(self) -> None:
        """One comparison. Safe to repeat and to be killed in, anywhere."""
        if not self.leadership.claim():
            return
        for run_id, attempt in self._live():
            try:
                self._tend(run_id, attempt)
            except RayUnavailable as error:
                log.warning("run %s attempt %s: Ray cannot be reached: %s", run_id, attempt, error)
        self._claim_queued()

    def _live(self) -> list[tuple[str, int]]:
        with self.database.reading() as session:
            query = select(RunRow).where(RunRow.state.in_(LIVE)).order_by(RunRow.id)
            return [(run.id, run.attempt) for run in session.scalars(query)]

    def _tend(self, run_id: str, attempt: int) -> None:
        with self.database.reading() as session:
            row = session.get(AttemptRow, (run_id, attempt))
            cancel = session.get_one(RunRow, run_id).cancel_requested_at
        if row is None:
            return
        if row.submitted_at is None:
            self._submit(run_id, attempt)
        self._take_events(run_id, attempt)
        watch = self._look(run_id, attempt)
        if cancel is not None and not watch.stop_written:
            self.storage.write_model(f"{attempt_folder(run_id, attempt)}/stop", Stop(reason="user_request"))
            watch.stop_written = True
        if cancel is not None and (now() - cancel).total_seconds() > self.settings.cancel_grace_seconds:
            self._kill_cancelled(run_id, attempt)
        else:
            self._judge(run_id, attempt, watch)

    def _submit(self, run_id: str, attempt: int) -> None:
        """Ticket, job, then the note that both are there: a crash between any two repeats harmlessly."""
        with self.database.reading() as session:
            work = work_of(session.get_one(RunRow, run_id))
            spent = spend_of(session, run_id)
        ticket = RunTicket(
            run_id=run_id, attempt=attempt, work=work, storage=self.settings.storage, spent=spent
        )
        self.storage.write_model(ticket_path(run_id, attempt), ticket)
        self.ray.submit(submission_id(run_id, attempt), self._entrypoint(run_id, attempt))
        with self._writing() as session:
            session.get_one(AttemptRow, (run_id, attempt)).submitted_at = now()
        log.info("run %s attempt %s: submitted", run_id, attempt)

    def _entrypoint(self, run_id: str, attempt: int) -> str:
        words = [self.settings.worker_python, "-m", "workers.attempt"]
        words += ["--storage", self.settings.storage, "--run", run_id, "--attempt", str(attempt)]
        return shlex.join(words)

    def _take_events(self, run_id: str, attempt: int) -> None:
        with self.database.reading() as session:
            done = session.get_one(AttemptRow, (run_id, attempt)).event_seq
        names = self.storage.names(f"{attempt_folder(run_id, attempt)}/events")
        for name in names[done:]:
            event = self.storage.read_model(
                event_path(run_id, attempt, int(name.removesuffix(".json"))), Event
            )
            with self._writing() as session:
                taken = apply_event(session, self.settings, event)
            if not taken:
                return
            if event.body.type != "progress":
                log.info("run %s attempt %s: %s", run_id, attempt, event.body.type)

    def _look(self, run_id: str, attempt: int) -> Watch:
        path = f"{attempt_folder(run_id, attempt)}/heartbeat"
        beat = self.storage.read_bytes(path) if self.storage.exists(path) else b""
        watch = self._watched.setdefault((run_id, attempt), Watch(beat, time.monotonic()))
        if beat != watch.beat:
            watch.beat, watch.seen = beat, time.monotonic()
        return watch

    def _judge(self, run_id: str, attempt: int, watch: Watch) -> None:
        """End an attempt that Ray says is over, or that has been silent too long."""
        silent = time.monotonic() - watch.seen
        patience = self.settings.silence_seconds if watch.beat else self.settings.start_seconds
        if silent > patience:
            self.ray.stop(submission_id(run_id, attempt))
            return self._lose(run_id, attempt, f"no sign of life for {silent:.0f} s")
        if time.monotonic() - watch.asked < STATUS_SECONDS:
            return None
        watch.asked = time.monotonic()
        status = self.ray.status(submission_id(run_id, attempt))
        if status is None or status in FINISHED:
            # Its last event may have been written since we looked.
            self._take_events(run_id, attempt)
            self._lose(run_id, attempt, f"the worker ended without a word (Ray says {status or 'nothing'})")
        return None

    def _lose(self, run_id: str, attempt: int, message: str) -> None:
        with self._writing() as session:
            run = session.get_one(RunRow, run_id, with_for_update=True)
            if run.attempt != attempt or run.state not in LIVE:
                return
            session.get_one(AttemptRow, (run_id, attempt)).ended_at = now()
            fail_attempt(session, self.settings, run, "worker_lost", message)
        log.warning("run %s attempt %s: lost: %s", run_id, attempt, message)

    def _kill_cancelled(self, run_id: str, attempt: int) -> None:
        self.ray.stop(submission_id(run_id, attempt))
        with self._writing() as session:
            run = session.get_one(RunRow, run_id, with_for_update=True)
            if run.attempt == attempt and run.state in LIVE:
                session.get_one(AttemptRow, (run_id, attempt)).ended_at = now()
                transition(session, run, "CANCELLED", "user_request", "killed after the grace period")
        log.info("run %s attempt %s: killed on request", run_id, attempt)

    def _claim_queued(self) -> None:
        """Oldest first; the head of the queue waits for room rather than being overtaken for ever."""
        with self._writing() as session:
            free = self.settings.cpus - sum(_cpus(run) for run in _in(session, LIVE))
            for run in _in(session, ("QUEUED",)):
                if _cpus(run) > free:
                    return
                if hold(session, self.storage, run):
                    continue
                free -= _cpus(run)
                run.attempt += 1
                session.add(AttemptRow(run_id=run.id, number=run.attempt))
                transition(session, run, "STARTING")
                log.info("run %s attempt %s: claimed", run.id, run.attempt)

    def _writing(self) -> "LeaderWriting":
        return LeaderWriting(self.database, self.leadership)


class LostLeadership(Exception):
    """Another scheduler leads by now; nothing of this transaction is kept."""


class LeaderWriting:
    """A write transaction that only the leader can commit."""

    def __init__(self, database: Database, leadership: Leadership) -> None:
        self._context, self._leadership = database.writing(), leadership

    def __enter__(self) -> Session:
        session = self._context.__enter__()
        if not self._leadership.holds(session):
            error = LostLeadership("this scheduler's lease has run out")
            self._context.__exit__(type(error), error, None)
            raise error
        return session

    def __exit__(self, *exception: object) -> None:
        self._context.__exit__(*exception)  # type: ignore[arg-type]  # what Python passes to any __exit__


def _in(session: Session, states: tuple[str, ...]) -> list[RunRow]:
    due = or_(RunRow.not_before.is_(None), RunRow.not_before <= now())
    query = select(RunRow).where(RunRow.state.in_(states), due | RunRow.state.in_(LIVE)).order_by(RunRow.id)
    return list(session.scalars(query.limit(200)))


def _cpus(run: RunRow) -> int:
    resources = run.experiment.spec["resources"]
    return int(resources["workers"] * resources["cpus_per_worker"])
