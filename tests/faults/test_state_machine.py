"""Any sequence of submissions, wishes, faults and schedulers keeps the invariants: on both databases.

Rules are what people, schedulers, workers and the machine do; after each the whole store is verified. The
clock of the database is the test's, and jumps; a second scheduler may wake at any time; workers that were
replaced go on writing.
"""

import itertools
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from grafting_core.specs.budget import Budget, Usage
from service.db.engine import Database
from service.db.leader_lease import LostLeadership
from service.db.tables import Base, LeaderRow, RunRow
from service.db.webhook_tables import DeliveryRow
from service.domain.budget_limits import AccountLimits, set_limits
from service.domain.run_controls import Action, apply_action, extend, prioritise
from service.domain.run_lifecycle import LIVE, IllegalMove
from service.domain.submission import KeyReused
from service.domain.webhook_outbox import register
from service.scheduler.checkpoint_cleanup import CheckpointCleaner
from service.schemas.runs import TERMINAL
from service.schemas.webhooks import WebhookRequest
from tests.support.databases import new_database
from tests.support.lab_harness import LabHarness
from tests.support.runs import STARTED
from workers.contract import (
    AttemptFailed,
    AttemptStopped,
    EventBody,
    Progress,
    Reason,
    attempt_folder,
    ticket_path,
)

pytestmark = pytest.mark.large

ACTIONS: list[Action] = ["pause", "resume", "cancel", "kill", "retry"]
REASONS: list[Reason] = [
    "worker_lost",
    "out_of_memory",
    "node_fault",
    "preempted",
    "diverged",
    "internal_error",
    "storage_full",
]
OWNERS = st.sampled_from(["ann", "bob"])


class SkewedDatabase(Database):
    """Its clock is moved by hand."""

    offset = 0.0

    def clock(self, session: Session) -> float:
        return super().clock(session) + self.offset


class Lab(RuleBasedStateMachine):
    """Two schedulers over one store."""

    runs = Bundle("runs")
    make_database: Callable[[Path], SkewedDatabase]

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="graftlab-model-"))
        self.harness = LabHarness(self.folder, self.make_database(self.folder))
        self.harness.settings.cpus = 2
        self.harness.settings.max_attempts = 3
        self.other = self.harness.new_scheduler()
        self.numbers = itertools.count()
        self.acknowledged: set[str] = set()
        with self.harness.database.writing() as session:
            register(session, WebhookRequest(url="https://hooks.example/"), "ann")

    def teardown(self) -> None:
        """Faults end: everything comes to an end, and nothing acknowledged is missing."""
        self.harness.database.offset = 1e6
        for owner in ("ann", "bob"):
            self.limit(owner, None, None)
        ended = self.harness.drain()
        assert {state for state, _ in ended.values()} <= TERMINAL
        assert ended.keys() == self.acknowledged
        assert self.harness.violations() == []
        with self.harness.database.reading() as session:
            assert set(session.scalars(select(DeliveryRow.subject))) == self.acknowledged
        self.harness.database.engine.dispose()
        shutil.rmtree(self.folder)

    @rule(target=runs, owner=OWNERS, workers=st.integers(1, 2), seconds=st.sampled_from([None, 5.0, 50.0]))
    def submit(self, owner: str, workers: int, seconds: float | None) -> str:
        number = next(self.numbers)
        budget = {"device_seconds": seconds} if seconds else {}
        distill = {"steps": 6, "seed": number, "batch_size": 16, "images": 200, "held_out": 16}
        changes = {"budget": budget, "resources": {"workers": workers}, "distill": distill}
        run = self.harness.submit(owner, f"key {number}", **changes)
        assert self.harness.submit(owner, f"key {number}", **changes) == run
        self.acknowledged.add(run)
        return run

    @rule(run=runs, action=st.sampled_from(ACTIONS))
    def wish(self, run: str, action: Action) -> None:
        self._change(run, lambda session, row: apply_action(session, row, action))

    @rule(run=runs, seconds=st.sampled_from([1.0, 100.0]), key=st.sampled_from([None, "k"]))
    def extend(self, run: str, seconds: float, key: str | None) -> None:
        self._change(run, lambda session, row: extend(session, row, seconds, key))

    @rule(run=runs, priority=st.integers(-2, 2))
    def prioritise(self, run: str, priority: int) -> None:
        self._change(run, lambda session, row: prioritise(session, row, priority))

    def _change(self, run: str, change: Callable[[Session, RunRow], bool]) -> None:
        with self.harness.database.writing() as session:
            row = session.get_one(RunRow, run, with_for_update=True)
            try:
                change(session, row)
            except (IllegalMove, KeyReused):
                session.rollback()

    @rule(owner=OWNERS, seconds=st.sampled_from([None, 10.0, 1000.0]), running=st.sampled_from([None, 1]))
    def limit(self, owner: str, seconds: float | None, running: int | None) -> None:
        with self.harness.database.writing() as session:
            limits = AccountLimits(budget=Budget(device_seconds=seconds), max_running=running)
            set_limits(session, ("user", owner), limits)

    @rule()
    def schedule(self) -> None:
        self.harness.round()

    @rule()
    def schedule_by_the_other(self) -> None:
        self.other.reconciler.forget()
        self.other.round()

    @rule()
    def a_frozen_leader_thaws(self) -> None:
        """It was stopped after it had looked; the lease has run out and another leads."""
        before = self.harness.states()
        with self.harness.database.reading() as session:
            lease = session.get(LeaderRow, 1)
            left = lease.until - self.harness.database.clock(session) if lease else 0.0
        # However far the clock was set back meanwhile.
        self.harness.database.offset += max(1000.0, left + 1)
        assert self.other.control.lease.claim()
        with suppress(LostLeadership):  # where there is nothing to start, it writes nothing and is not told
            assert self.harness.scheduler.admit() == []
        assert self.harness.states() == before

    @rule(seconds=st.sampled_from([-7200.0, 5.0, 30.0, 100.0, 7200.0]))
    def the_clock_jumps(self, seconds: float) -> None:
        self.harness.database.offset += seconds

    @rule(run=runs, attempt=st.integers(1, 4), fid=st.sampled_from(["finish", "start", "progress"]))
    def a_worker_works(self, run: str, attempt: int, fid: str) -> None:
        """Of any attempt there ever was, replaced ones too."""
        if attempt > self.harness.states()[run][1] or not self.harness.storage.exists(
            ticket_path(run, attempt)
        ):
            return
        if fid == "finish":
            return self.harness.finish(run, attempt)
        events = self.harness.storage.names(f"{attempt_folder(run, attempt)}/events")
        if not events:
            self.harness.say(run, STARTED, attempt=attempt)
        elif fid == "progress" and len(events) < 3:
            spend = Usage(device_seconds=7.0, flops=1e9, training_images=16)
            step = Progress(stage="finetune", step=1, total_steps=8, spend=spend)
            self.harness.say(run, step, attempt=attempt)

    @rule(run=runs, attempt=st.integers(1, 4), reason=st.sampled_from(REASONS), stops=st.booleans())
    def a_worker_gives_up(self, run: str, attempt: int, reason: Reason, stops: bool) -> None:
        if attempt > self.harness.states()[run][1] or not self.harness.storage.exists(
            ticket_path(run, attempt)
        ):
            return
        failed: EventBody = AttemptFailed(reason=reason, message="m", spend=Usage(device_seconds=2.0))
        if stops:
            failed = AttemptStopped(reason="user_request", spend=Usage(device_seconds=2.0))
        self.harness.say(run, failed, attempt=attempt)

    @rule(run=runs)
    def a_job_dies(self, run: str) -> None:
        if self.harness.states()[run][0] in LIVE:
            self.harness.lose(run)

    @rule()
    def the_cluster_forgets_everything(self) -> None:
        for job in self.harness.cluster.running():
            self.harness.cluster.forget(job)

    @rule()
    def somebody_tidies_up(self) -> None:
        CheckpointCleaner(self.harness.settings, self.harness.database, self.harness.storage).round()

    @rule()
    def the_scheduler_is_restarted(self) -> None:
        self.harness.scheduler = self.harness.new_scheduler()

    @invariant()
    def holds(self) -> None:
        assert self.harness.violations() == []


def model(name: str, make: Callable[[Path], SkewedDatabase]) -> type[Lab]:
    return type(name, (Lab,), {"make_database": staticmethod(make)})


def run(machine: type[Lab], examples: int) -> None:
    profile = settings(
        max_examples=examples,
        stateful_step_count=50,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    run_state_machine_as_test(machine, settings=profile)


def test_the_invariants_hold_on_sqlite(sqlite_template: Path, model_examples: int) -> None:
    def make(folder: Path) -> SkewedDatabase:
        shutil.copy(sqlite_template, folder / "lab.db")
        return SkewedDatabase(f"sqlite:///{folder / 'lab.db'}")

    run(model("OnSqlite", make), model_examples)


def test_the_invariants_hold_on_postgresql(
    request: pytest.FixtureRequest, tmp_path: Path, model_examples: int
) -> None:
    server_database = new_database(request, "postgresql", tmp_path)

    def make(folder: Path) -> SkewedDatabase:
        made = SkewedDatabase(server_database)
        with made.writing() as session:
            for table in reversed(Base.metadata.sorted_tables):
                session.execute(delete(table))
        return made

    run(model("OnPostgresql", make), max(1, model_examples // 2))
