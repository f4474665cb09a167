"""Reconcile one live attempt: submit it, apply its events, pass requests on, and end it if it is lost."""

import logging
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from grafting_core.specs.budget import Budget
from grafting_core.storage.failpoints import failpoint
from grafting_core.storage.storage import Storage
from service.cluster import FINISHED
from service.control import ClusterControl
from service.db.leader_lease import LostLeadership
from service.db.tables import AttemptRow, RunRow, now
from service.domain.attempt_events import apply_event, end_attempt
from service.domain.budgets import budget_of
from service.domain.queue_order import room
from service.domain.registry import registry_for
from service.domain.registry_files import MissingFiles, check_published
from service.domain.revision_damage import DamagedRevision
from service.domain.run_lifecycle import LIVE
from service.domain.run_queries import spend_of, work_of
from service.log_once import AWAY, brief
from service.scheduler.attempt_leases import LiveAttempt
from service.scheduler.warm_workers import WarmWorkerPool
from workers.contract import (
    Event,
    Reason,
    RunTicket,
    Stop,
    attempt_folder,
    budget_path,
    event_path,
    submission_id,
    ticket_path,
)

log = logging.getLogger("graftlab.scheduler")
STATUS_SECONDS = 3.0
"""Time between two status requests to Ray for an attempt whose heartbeat is seen."""


@dataclass
class LivenessRecord:
    """Observations of one attempt by this process, by its own monotonic clock."""

    beat: bytes
    seen: float
    fresh: bool = True
    """Whether a heartbeat was seen since its lease was renewed."""
    status_at: float = 0.0
    stopped_for: Reason | None = None
    budget: Budget | None = None


class AttemptReconciler:
    """Takes one step for each live attempt per round."""

    def __init__(self, control: ClusterControl, hosts: WarmWorkerPool) -> None:
        self._control, self._hosts = control, hosts
        self.watched: dict[tuple[str, int], LivenessRecord] = {}

    def forget(self) -> None:
        """Forget all observations: another scheduler leads, so they say nothing about now."""
        self.watched.clear()

    def forget_all_but(self, live: Sequence[LiveAttempt]) -> None:
        for key in self.watched.keys() - {attempt.key for attempt in live}:
            del self.watched[key]

    def alive(self, live: Sequence[LiveAttempt]) -> list[tuple[str, int]]:
        """Return attempts whose lease must be renewed, because their heartbeat was seen."""
        keys = [a.key for a in live if a.key in self.watched and self.watched[a.key].fresh]
        for key in keys:
            self.watched[key].fresh = False
        return keys

    def reconcile(self, attempt: LiveAttempt, clock: float, spent: str | None) -> None:
        """Submit the attempt if needed, apply its events, pass requests on, and end it if it is lost.

        Raises ClusterUnavailable, OSError, LostLeadership or one of `AWAY`, which may pass; any other
        error is the run's.
        """
        if attempt.wrong is not None:
            return self.end(attempt, "internal_error", attempt.wrong)
        if not attempt.submitted:
            try:
                attempt = replace(attempt, job=self._submit(*attempt.key))
            except DamagedRevision as error:
                return self.end(attempt, "bad_input", str(error))
        if not self._take_events(attempt):
            return
        watch = self._look(attempt)
        if attempt.kill:
            return self.end(attempt, "user_request", "killed on request")
        if spent is not None:
            self._write_stop(attempt, watch, "budget_exhausted")
        if attempt.stop_requested_at is not None:
            self._write_stop(attempt, watch, "user_request")
            if attempt.stop_requested_seconds > self._control.settings.cancel_grace_seconds:
                return self.end(attempt, "user_request", "killed after the grace period")
        self._pass_budget(attempt, watch)
        return self._judge(attempt, watch, clock)

    def _submit(self, run_id: str, number: int) -> str:
        """Write the ticket, start the job, then record both: a crash between any two repeats harmlessly."""
        ticket = self._ticket(run_id, number)
        self._control.storage.write_model(ticket_path(run_id, number), ticket)
        job, ticket_index = self._place(ticket)
        if ticket_index > 1:
            self._hosts.hand_over(job, ticket_index, ticket)
        else:
            self._hosts.make_room(*self._free())
            self._control.cluster.submit(job, self._entrypoint(run_id, number))
        with self._control.leading() as session:
            session.get_one(AttemptRow, (run_id, number)).submitted_at = now()
        log.info("run %s attempt %s: submitted as ticket %s of %s", run_id, number, ticket_index, job)
        return job

    def _place(self, ticket: RunTicket) -> tuple[str, int]:
        """Return job and ticket number: those recorded before, else a warm worker's next, else a new job.

        Recorded before it is acted on, so that a repetition after a crash decides the same.
        """
        host = self._hosts.find(ticket)
        with self._control.leading() as session:
            row = session.get_one(AttemptRow, (ticket.run_id, ticket.attempt))
            if row.job is None and host is not None:
                row.job, row.ticket_index = host.job, host.ticket_index + 1
            elif row.job is None:
                row.job = submission_id(ticket.run_id, ticket.attempt)
            return row.job, row.ticket_index

    def _free(self) -> tuple[int, int]:
        with self._control.database.reading() as session:
            left = room(session, self._control.settings.cpus, self._control.settings.gpus)
        return left.cpus, left.gpus

    def _ticket(self, run_id: str, number: int) -> RunTicket:
        settings = self._control.settings
        with self._control.database.reading() as session:
            run = session.get_one(RunRow, run_id)
            work = work_of(run)
            return RunTicket(
                run_id=run_id,
                attempt=number,
                work=work,
                registered=registry_for(session, work),
                import_roots=tuple(map(str, settings.import_roots)),
                closed_folders=(str(settings.data_dir), settings.storage),
                storage=settings.storage,
                spent=spend_of(session, run_id),
                budget=budget_of(run),
                accumulation_steps=run.accumulation_steps,
                heartbeat_seconds=min(5.0, settings.silence_seconds / 12),
                silence_seconds=settings.silence_seconds,
                checkpoint_seconds=settings.checkpoint_seconds,
                keep_checkpoints=settings.keep_checkpoints,
                keep_best=settings.keep_best,
                warm_seconds=settings.warm_seconds,
            )

    def _entrypoint(self, run_id: str, number: int) -> str:
        words = [self._control.settings.worker_python, "-P", "-m", "workers.driver"]
        words += ["--storage", self._control.settings.storage, "--run", run_id, "--attempt", str(number)]
        return shlex.join(words)

    def _take_events(self, attempt: LiveAttempt) -> bool:
        """Apply new events in order; False if the attempt is no longer live."""
        seq = attempt.event_seq + 1
        while self._control.storage.exists(event_path(*attempt.key, seq)):
            try:
                state = self._take(attempt, seq)
            except (LostLeadership, OSError, *AWAY):
                raise
            except MissingFiles as error:
                self.end(attempt, "invalid_checkpoint", str(error))
                return False
            except Exception as error:  # noqa: BLE001 - an error caused by an event ends only its attempt
                self.end(attempt, "internal_error", f"event {seq} cannot be applied: {brief(error)}")
                return False
            if state not in LIVE:
                return False
            seq += 1
        return True

    def _take(self, attempt: LiveAttempt, seq: int) -> str | None:
        """Apply one event and return the run's state; None if the attempt is no longer the run's.

        Raises the error of a wrong event, which then has changed nothing.
        """
        event = _read_event(self._control.storage, attempt, seq)
        with self._control.leading() as session:
            check_published(self._control.storage, event)
            if not apply_event(session, self._control.settings, event):
                return None
            state = session.get_one(RunRow, attempt.run_id).state
            failpoint("event")
        if event.body.type != "progress":
            log.info("run %s attempt %s: %s", *attempt.key, event.body.type)
        return state

    def _look(self, attempt: LiveAttempt) -> LivenessRecord:
        beat = _beat(self._control.storage, f"{attempt_folder(*attempt.key)}/heartbeat")
        watch = self.watched.setdefault(attempt.key, LivenessRecord(beat, time.monotonic(), fresh=bool(beat)))
        if beat != watch.beat:
            watch.beat, watch.seen, watch.fresh = beat, time.monotonic(), True
        return watch

    def _write_stop(self, attempt: LiveAttempt, watch: LivenessRecord, reason: Reason) -> None:
        if watch.stopped_for != reason:
            self._control.storage.write_model(f"{attempt_folder(*attempt.key)}/stop", Stop(reason=reason))
            watch.stopped_for = reason

    def _pass_budget(self, attempt: LiveAttempt, watch: LivenessRecord) -> None:
        """Write the budget file when the budget has changed; the first time it repeats the ticket's."""
        if (watch.budget is not None and watch.budget != attempt.budget) or watch.budget is None:
            self._control.storage.write_model(budget_path(*attempt.key), attempt.budget)
            watch.budget = attempt.budget

    def _judge(self, attempt: LiveAttempt, watch: LivenessRecord, clock: float) -> None:
        """End an attempt whose job has ended according to Ray, or whose lease expired without a heartbeat."""
        settings = self._control.settings
        patience = settings.silence_seconds if watch.beat else settings.start_seconds
        silent = time.monotonic() - watch.seen
        # A clock that was set back must not make a lease endless.
        over = attempt.lease_until < clock or attempt.lease_until > clock + 2 * patience
        if silent > patience and over:
            return self.end(attempt, "worker_lost", f"no sign of life for {silent:.0f} s")
        if time.monotonic() - watch.status_at < STATUS_SECONDS:
            return None
        watch.status_at = time.monotonic()
        return self._ask(attempt)

    def _ask(self, attempt: LiveAttempt) -> None:
        status = self._control.cluster.status(attempt.job)
        if status is not None and status not in FINISHED:
            return
        # Its last event may have been written since the check.
        with self._control.database.reading() as session:
            seq = session.get_one(AttemptRow, attempt.key).event_seq
        if self._take_events(LiveAttempt(**{**attempt.__dict__, "event_seq": seq})):
            # A job that the cluster has lost, or a warm worker that exited before it got its ticket: not the
            # run's fault.
            guest = attempt.job != submission_id(*attempt.key) and seq == 0
            reason: Reason = "worker_lost" if status and not guest else "node_fault"
            message = f"the worker ended without a last event (Ray's status: {status or 'none'})"
            self.end(attempt, reason, message)

    def end(self, attempt: LiveAttempt, reason: Reason, message: str) -> None:
        """Request the old worker to stop, then fence it: after the commit, nothing it writes counts."""
        self._control.storage.write_model(f"{attempt_folder(*attempt.key)}/stop", Stop(reason="worker_lost"))
        self._control.cluster.stop(attempt.job)
        with self._control.leading() as session:
            run = session.get_one(RunRow, attempt.run_id, with_for_update=True)
            if run.attempt != attempt.number or run.state not in LIVE:
                return
            row = session.get_one(AttemptRow, attempt.key)
            end_attempt(session, self._control.settings, run, row, reason, message)
        log.warning("run %s attempt %s: ended: %s", *attempt.key, message)


def _read_event(storage: Storage, attempt: LiveAttempt, seq: int) -> Event:
    """Read the event with this number. Raises ValueError if the file holds none, or another's."""
    path = event_path(*attempt.key, seq)
    try:
        event = storage.read_model(path, Event)
    except IsADirectoryError as error:
        raise ValueError(f"{path} is a folder") from error
    if (event.run_id, event.attempt, event.seq) != (*attempt.key, seq):
        actual = f"event {event.seq} of attempt {event.attempt} of run {event.run_id:.40}"
        raise ValueError(f"the file holds {actual}")
    return event


def _beat(storage: Storage, path: str) -> bytes:
    """Return the newest heartbeat; empty if it cannot be read."""
    try:
        return storage.read_bytes(path)
    except (FileNotFoundError, IsADirectoryError):
        return b""
