"""The queue: priorities first, turns by share, gangs whole, quotas and budgets held, all of it explained."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import event as sql_event
from sqlalchemy import insert, select, text
from sqlalchemy.orm import Session

from grafting_core.specs.budget import Budget, Usage
from grafting_core.storage.storage import Storage
from service.db.engine import Database
from service.db.tables import AccountRow, AttemptRow, RunRow
from service.domain.budget_limits import AccountLimits, set_limits
from service.domain.budgets import charge_attempt, live_use, spent_accounts
from service.domain.queue_explain import queue_view
from service.domain.run_controls import prioritise
from service.domain.run_lifecycle import transition
from service.domain.submission import QueueOptions, QuotaReached, submit
from service.scheduler.claims import admit, decide
from service.schemas.runs import Forecast
from service.settings import Settings
from tests.support.builders import experiment
from tests.support.runs import finished_run

BLOCKS = iter(range(10**6))


@pytest.fixture
def start(database: Database, settings: Settings) -> Callable[[], list[str]]:
    """One admission; the names of the runs it started."""

    def once() -> list[str]:
        with database.reading() as session:
            decided = decide(session, settings, Storage(settings.storage))
        with database.writing() as session:
            ids = admit(session, settings, decided, database.clock(session))
            return [session.get_one(RunRow, run).experiment.name for run in ids]

    return once


def queue(session: Session, name: str, owner: str = "ann", **given: Any) -> RunRow:
    """A run unlike all others, so that none waits for what another is making."""
    placing = QueueOptions(given.pop("tag", None), given.pop("priority", 0))
    seconds = given.pop("seconds", None)
    expected = Forecast(device_seconds=seconds, low=seconds, high=seconds, runs=9) if seconds else None
    plan = {"distill": {"steps": 6, "seed": next(BLOCKS), "batch_size": 16, "images": 200, "held_out": 16}}
    spec = experiment(name=name, **plan, **given)
    run = submit(session, spec, "digest", None, expected, owner, placing)
    session.flush()
    return run


def end(session: Session, run: RunRow, spend: Usage) -> None:
    attempt = session.get_one(AttemptRow, (run.id, run.attempt))
    attempt.device_seconds, attempt.flops = spend.device_seconds, spend.flops
    charge_attempt(session, run, attempt, None)
    transition(session, run, "FAILED", "internal_error")


def test_priority_goes_before_age_and_age_before_nothing(
    database: Database, start: Callable[[], list[str]]
) -> None:
    with database.writing() as session:
        queue(session, "old")
        queue(session, "new")
        queue(session, "urgent", priority=5)
    assert start() == ["urgent", "old"]


def test_a_priority_changed_in_place_counts_at_once(
    database: Database, start: Callable[[], list[str]]
) -> None:
    with database.writing() as session:
        queue(session, "a")
        queue(session, "b")
        assert prioritise(session, queue(session, "c"), 1)
    assert start() == ["c", "a"]


def test_users_take_turns_however_many_runs_one_has_queued(
    database: Database, start: Callable[[], list[str]]
) -> None:
    with database.writing() as session:
        for index in range(5):
            queue(session, f"ann {index}")
        queue(session, "bob 0", owner="bob")
    assert start() == ["ann 0", "bob 0"]


def test_of_equal_shares_goes_first_who_used_least_of_late(
    database: Database, settings: Settings, start: Callable[[], list[str]]
) -> None:
    settings.cpus = 1
    with database.writing() as session:
        queue(session, "ann")
        queue(session, "bob", owner="bob")
        account = session.get_one(AccountRow, ("user", "ann"))
        account.recent_seconds, account.recent_at = 500.0, time.time()
    assert start() == ["bob"]


def test_a_gang_starts_whole_and_smaller_ones_pass_while_it_is_young(
    database: Database, settings: Settings, start: Callable[[], list[str]]
) -> None:
    with database.writing() as session:
        queue(session, "first")
        queue(session, "gang", resources={"workers": 2})
        queue(session, "small")
    assert start() == ["first", "small"]


def test_age_does_not_invert_priorities(
    database: Database, settings: Settings, start: Callable[[], list[str]]
) -> None:
    settings.hold_line_seconds = -1.0
    with database.writing() as session:
        queue(session, "one")
    assert start() == ["one"]
    with database.writing() as session:
        queue(session, "gang that waits", resources={"workers": 2})
        queue(session, "behind it")
        queue(session, "above it", priority=1)
    assert start() == ["above it"]
    assert start() == []


def test_quotas_hold_a_users_runs_back(database: Database, start: Callable[[], list[str]]) -> None:
    with database.writing() as session:
        set_limits(session, ("user", "ann"), AccountLimits(max_running=1, max_queued=3))
        for index in range(3):
            queue(session, f"ann {index}")
        with pytest.raises(QuotaReached, match="ann has 3 queued runs"):
            queue(session, "ann 3")
    assert start() == ["ann 0"]
    assert start() == []


@pytest.mark.parametrize("key", [("lab", "lab"), ("user", "ann"), ("tag", "s1")])
def test_shared_budgets_are_reserved_metered_and_settled(
    database: Database, start: Callable[[], list[str]], key: tuple[str, str]
) -> None:
    with database.writing() as session:
        set_limits(session, key, AccountLimits(budget=Budget(device_seconds=100.0)))
        first = queue(session, "first", seconds=60.0, tag="s1")
        queue(session, "second", seconds=60.0, tag="s1")
    assert start() == ["first"]
    with database.writing() as session:
        run = session.get_one(RunRow, first.id)
        assert spent_accounts(session, live_use(session)) == {}
        session.get_one(AttemptRow, (run.id, 1)).device_seconds = 100.0
        session.flush()
        assert list(spent_accounts(session, live_use(session))) == [first.id]
        end(session, run, Usage(device_seconds=30.0))
    assert start() == ["second"]
    with database.writing() as session:
        assert session.get_one(AccountRow, key).device_seconds == 30.0


def test_runs_of_a_lab_without_history_claim_all_they_may_until_there_is_one(
    database: Database, start: Callable[[], list[str]]
) -> None:
    with database.writing() as session:
        set_limits(session, ("tag", "s1"), AccountLimits(budget=Budget(device_seconds=1e5)))
        first, *_ = (
            queue(session, name, tag="s1", budget={"device_seconds": 1e5})
            for name in ("first", "second", "third")
        )
    assert start() == ["first"]
    assert start() == []
    with database.writing() as session:
        end(session, session.get_one(RunRow, first.id), Usage(device_seconds=30.0))
        finished_run(session)
    assert start() == ["second", "third"]
    with database.reading() as session:
        for run in session.scalars(select(RunRow).where(RunRow.state == "STARTING")):
            assert run.forecast is not None
            assert run.reserved_device_seconds == run.forecast["device_seconds"] < 1e4


def test_what_is_more_than_is_left_starts_alone_and_nothing_starts_once_it_is_spent(
    database: Database, start: Callable[[], list[str]]
) -> None:
    with database.writing() as session:
        set_limits(session, ("lab", "lab"), AccountLimits(budget=Budget(device_seconds=10.0)))
        big = queue(session, "big", seconds=60.0)
    assert start() == ["big"]
    with database.writing() as session:
        end(session, session.get_one(RunRow, big.id), Usage(device_seconds=10.0))
        queue(session, "late")
    assert start() == []
    with database.reading() as session:
        (entry,) = queue_view(session, 2, 0, 10).entries
    assert (entry.lacks, entry.waits_for) == (
        "budget",
        "the budget of the lab is spent: 10 of 10 device seconds",
    )


def test_an_attempt_is_charged_once(database: Database, start: Callable[[], list[str]]) -> None:
    with database.writing() as session:
        run_id = queue(session, "a").id
    start()
    with database.writing() as session:
        run = session.get_one(RunRow, run_id)
        attempt = session.get_one(AttemptRow, (run_id, 1))
        attempt.device_seconds = 7.0
        charge_attempt(session, run, attempt, None)
        charge_attempt(session, run, attempt, None)
        assert session.get_one(AccountRow, ("lab", "lab")).device_seconds == 7.0


def test_a_run_whose_own_budget_is_spent_stops_instead_of_starting(
    database: Database, start: Callable[[], list[str]]
) -> None:
    with database.writing() as session:
        run = queue(session, "a", budget={"device_seconds": 5.0})
        session.add(AttemptRow(run_id=run.id, number=1, device_seconds=6.0))
        run.attempt = 1
    assert start() == []
    with database.reading() as session:
        found = session.get_one(RunRow, run.id)
        assert (found.state, found.reason) == ("STOPPED", "budget_exhausted")


def test_device_seconds_of_a_worker_with_several_gpus_pass_that_many_times_as_fast(
    database: Database,
) -> None:
    """A worker with 4 GPUs and 400 device-seconds left of 800 ends in 100 s; two workers of 2 do too."""
    with database.writing() as session:
        for workers in (1, 2):
            asked = {"workers": workers, "gpus_per_worker": 4 // workers}
            live = queue(session, f"live {workers}", seconds=800.0, resources=asked)
            live.state, live.attempt = "RUNNING", 1
            session.add(AttemptRow(run_id=live.id, number=1, event_seq=0, device_seconds=400.0))
            behind = queue(session, f"behind {workers}", seconds=1.0, resources=asked).id
            session.flush()
            (entry,) = queue_view(session, 4, 4, 1, behind).entries
            assert entry.expected_start_seconds == pytest.approx(100.0)
            live.state = session.get_one(RunRow, behind).state = "CANCELLED"


def test_the_queue_says_who_is_ahead_what_is_missing_and_when_it_starts(
    database: Database, start: Callable[[], list[str]]
) -> None:
    with database.writing() as session:
        queue(session, "running", seconds=100.0)
        gang = queue(session, "gang", seconds=50.0, resources={"workers": 2}).id
        last = queue(session, "last", owner="bob", seconds=10.0, priority=-1).id
    with database.writing() as session:
        start_one = session.get_one(RunRow, min(gang, last))
        assert start_one.state == "QUEUED"
    assert start() == ["running", "last"]
    with database.writing() as session:
        later = queue(session, "later", seconds=10.0).id
        view = queue_view(session, 2, 0, 10)
    first, second = view.entries
    assert (view.free_cpus, view.queued) == (0, 2)
    assert (first.run_id, first.position, first.behind, first.lacks) == (gang, 1, [], "cpus")
    assert first.waits_for == "it asks for 2 CPUs and 0 are free"
    assert first.expected_start_seconds == pytest.approx(100.0)
    assert (second.run_id, second.position, second.behind) == (later, 2, [gang])
    assert second.expected_start_seconds == pytest.approx(125.0)


def test_an_admission_looks_at_as_many_rows_however_long_the_queue(
    database: Database, settings: Settings, start: Callable[[], list[str]]
) -> None:
    """Counted in rows that the database hands out, which no machine's load can change."""
    seen: list[int] = []

    def fill(count: int) -> None:
        with database.writing() as session:
            template = queue(session, "template", owner="u0")
            columns = {c.key: getattr(template, c.key) for c in RunRow.__table__.columns}
            rows = [
                {**columns, "id": f"{template.id}{index:06d}", "owner": f"u{index % 10}"}
                for index in range(count)
            ]
            session.execute(insert(RunRow), rows)

    def counted(connection: object, cursor: Any, statement: str, *rest: object) -> None:
        if "EXPLAIN" not in statement and "state = " in statement:
            seen.append(1)

    sql_event.listen(database.engine, "after_cursor_execute", counted)
    fill(100)
    start()
    few = len(seen)
    fill(2000)
    seen.clear()
    start()
    assert len(seen) <= few + 2


def test_the_queues_queries_go_through_their_index(database: Database) -> None:
    query = "SELECT id FROM runs WHERE state = 'QUEUED' AND owner = 'a' ORDER BY precedence, id LIMIT 20"
    with database.reading() as session:
        if database.engine.dialect.name == "sqlite":
            plan = session.execute(text(f"EXPLAIN QUERY PLAN {query}")).all()
        else:
            session.execute(text("SET LOCAL enable_seqscan = off"))
            plan = session.execute(text(f"EXPLAIN {query}")).all()
    words = " ".join(str(row) for row in plan)
    assert "ix_runs_queue" in words
    assert "Sort" not in words
    assert "TEMP B-TREE" not in words
