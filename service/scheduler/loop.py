"""The level-triggered loop: compare the desired with the actual state, and take the next step."""

import logging
import time
from collections.abc import Callable, Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.cluster import ClusterUnavailable
from service.control import ClusterControl
from service.db.leader_lease import LostLeadership
from service.db.tables import RunRow
from service.domain.budgets import live_use, spent_accounts
from service.domain.registry import refresh
from service.log_once import AWAY, Once, brief
from service.scheduler.attempt_leases import LiveAttempt, live_attempts, renew
from service.scheduler.attempts import AttemptReconciler
from service.scheduler.claims import admit, decide, note_set_aside
from service.scheduler.warm_workers import WarmWorkerPool
from workers.contract import attempt_of

log = logging.getLogger("graftlab.scheduler")
ORPHAN_SECONDS = 15.0
"""Time between two searches for orphaned jobs in Ray."""
IDS = 500
"""Limit of run ids in one query."""


class Scheduler:
    """Claims queued runs, submits them to Ray, applies their events, and ends lost attempts."""

    def __init__(self, control: ClusterControl) -> None:
        self.control = control
        self.hosts = WarmWorkerPool(control.storage, control.cluster)
        self.reconciler = AttemptReconciler(control, self.hosts)
        self._say = Once(log)
        self._orphans_sought = -ORPHAN_SECONDS
        self._suspects: set[str] = set()
        self._aside_noted = False

    def round(self) -> None:
        """Run one round. Safe to repeat and to be killed at any point. Raises LostLeadership."""
        if not self.control.lease.claim():
            self.reconciler.forget()
            self._aside_noted = False
            return
        with self.control.database.reading() as session:
            refresh(session)
        for step in (self._reconcile_all, self._end_orphans, self.admit):
            self._carry_out(step)

    def _carry_out(self, step: Callable[[], object]) -> None:
        """Run one step; its failure does not affect later steps, unless database or lease are lost."""
        try:
            step()
            self._say.well(step.__name__)
        except (LostLeadership, *AWAY):
            raise
        except Exception as error:  # noqa: BLE001 - logged once, with its traceback
            fault = f"a step of the round failed: {type(error).__name__}: {brief(error)}"
            self._say(step.__name__, fault, level=logging.ERROR, trace=True)

    def _reconcile_all(self) -> None:
        with self.control.database.reading() as session:
            live = live_attempts(session)
            stops = spent_accounts(session, live_use(session))
            clock = self.control.database.clock(session)
        for attempt in live:
            self._reconcile(attempt, clock, stops.get(attempt.run_id))
        self.reconciler.forget_all_but(live)
        alive = self.reconciler.alive(live)
        if alive:
            with self.control.leading() as session:
                until = self.control.database.clock(session) + self.control.settings.silence_seconds
                renew(session, alive, until)

    def _reconcile(self, attempt: LiveAttempt, clock: float, spent: str | None) -> None:
        """Reconcile one attempt; its errors end it, or leave it for the next round, without affecting
        others.
        """
        about = "run {} attempt {}".format(*attempt.key)
        try:
            try:
                self.reconciler.reconcile(attempt, clock, spent)
            except (LostLeadership, ClusterUnavailable, OSError, *AWAY):
                raise
            except Exception as error:  # noqa: BLE001 - an error caused by an attempt ends that attempt
                self._say(attempt.key, f"{about}: cannot continue: {brief(error)}", trace=True)
                self.reconciler.end(attempt, "internal_error", f"{type(error).__name__}: {brief(error)}")
            self._say.well(attempt.key)
        except (LostLeadership, *AWAY):
            raise
        except ClusterUnavailable as error:
            self._say(attempt.key, f"{about}: Ray cannot be reached: {error}", fault="ray")
        except Exception as error:  # noqa: BLE001 - logged once, with its traceback
            text = f"{about}: will be retried in the next round: {type(error).__name__}: {brief(error)}"
            self._say(attempt.key, text, level=logging.ERROR, trace=True)

    def admit(self) -> list[str]:
        """Start queued runs and return their ids. Nothing is locked during storage operations."""
        if not self._aside_noted:
            with self.control.leading() as session:
                note_set_aside(session, self.control.settings)
            self._aside_noted = True
        with self.control.database.reading() as session:
            decided = decide(session, self.control.settings, self.control.storage)
        if not decided:
            return []
        with self.control.leading() as session:
            return admit(session, self.control.settings, decided, self.control.database.clock(session))

    def _end_orphans(self) -> None:
        """Stop jobs that no live attempt uses: those left by a replaced worker or scheduler.

        A job is stopped only if it is orphaned in two checks in a row: a finished driver exits by itself.
        """
        if time.monotonic() - self._orphans_sought < ORPHAN_SECONDS:
            return
        self._orphans_sought = time.monotonic()
        try:
            orphans = set(self._orphans(self.control.cluster.running()))
            for job in orphans & self._suspects:
                log.warning("%s: no attempt uses it; stopped", job)
                self.control.cluster.stop(job)
            self._suspects = orphans
            self._say.well("orphans")
        except ClusterUnavailable as error:
            self._say("orphans", f"orphaned jobs cannot be searched for: {error}", fault="ray")

    def _orphans(self, jobs: list[str]) -> list[str]:
        """Return jobs of this lab's runs that serve no live attempt and wait for none.

        Jobs of other labs are left alone.
        """
        named = {job: attempt[0] for job in jobs if (attempt := attempt_of(job)) is not None}
        for job in jobs:
            if job not in named:
                self._say(
                    ("job", job), f"job {job!r:.100} belongs to another lab; left alone", level=logging.INFO
                )
        used = {host.job for host in self.hosts.idle()}
        with self.control.database.reading() as session:
            ours = _known(session, sorted(set(named.values())))
            used |= {attempt.job for attempt in live_attempts(session)}
        return [job for job, run in named.items() if run in ours and job not in used]


def _known(session: Session, ids: Sequence[str]) -> set[str]:
    """Return those ids that are runs of this lab."""
    parts = (ids[start : start + IDS] for start in range(0, len(ids), IDS))
    return {
        run_id for part in parts for run_id in session.scalars(select(RunRow.id).where(RunRow.id.in_(part)))
    }
