"""The scheduler converges from SQL, storage and what Ray says, whenever it was killed."""

import logging
import threading
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update

from service.control import Control, run_periodically
from service.db.engine import Database
from service.db.leader_lease import Leadership, LostLeadership
from service.db.leases import longest, missing_leader
from service.db.tables import LeaderRow, RunRow
from service.domain.run_controls import apply_action
from service.scheduler.loop import Scheduler
from service.settings import Settings
from tests.support.control import new_scheduler
from tests.support.fakes import FakeCluster
from tests.support.runs import log_of, queue, state, write_success
from workers.contract import (
    AttemptFailed,
    AttemptStarted,
    Stop,
    attempt_folder,
    attempt_of,
    submission_id,
)


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
def scheduler(settings: Settings, database: Database, cluster: FakeCluster) -> Scheduler:
    return new_scheduler(settings, database, cluster)


def test_a_run_goes_from_queue_to_success(
    scheduler: Scheduler, database: Database, cluster: FakeCluster
) -> None:
    run = queue(database)
    scheduler.round()
    scheduler.round()
    assert state(database, run) == ("STARTING", 1)
    assert list(cluster.jobs) == [f"run-{run}-1"]
    write_success(log_of(scheduler, run))
    scheduler.round()
    assert state(database, run) == ("SUCCEEDED", 1)


@pytest.mark.parametrize(("waited", "third"), [(1e9, "STARTING"), (-1.0, "QUEUED")])
def test_a_gang_that_has_waited_long_is_not_overtaken(
    scheduler: Scheduler, database: Database, waited: float, third: str
) -> None:
    scheduler.control.settings.hold_line_seconds = waited
    runs = [
        queue(database),
        queue(database, layers=[2], resources={"workers": 2}),
        queue(database, layers=[4]),
    ]
    for _ in range(3):
        scheduler.round()
    assert [state(database, run)[0] for run in runs] == ["STARTING", "QUEUED", third]


def test_a_kill_between_claim_and_submit_is_made_good(
    settings: Settings, database: Database, cluster: FakeCluster, scheduler: Scheduler
) -> None:
    run = queue(database)
    scheduler.admit() if scheduler.control.lease.claim() else None
    scheduler.control.lease.release()
    successor = new_scheduler(settings, database, cluster)
    successor.round()
    successor.round()
    assert state(database, run) == ("STARTING", 1)
    assert list(cluster.jobs) == [f"run-{run}-1"]


def test_a_job_that_ends_without_a_word_is_tried_again(
    scheduler: Scheduler, database: Database, cluster: FakeCluster
) -> None:
    run = queue(database)
    scheduler.round()
    scheduler.round()
    log_of(scheduler, run).write(AttemptStarted(host="h", pid=1, device="cpu"))
    cluster.jobs[f"run-{run}-1"] = "FAILED"
    scheduler.reconciler.forget()
    scheduler.round()
    assert state(database, run) == ("STARTING", 2)


def test_the_word_of_the_worker_stands_against_rays(
    scheduler: Scheduler, database: Database, cluster: FakeCluster
) -> None:
    run = queue(database)
    scheduler.round()
    scheduler.round()
    write_success(log_of(scheduler, run))
    cluster.jobs[f"run-{run}-1"] = "FAILED"
    scheduler.reconciler.forget()
    scheduler.round()
    assert state(database, run) == ("SUCCEEDED", 1)


def test_silence_loses_the_attempt(scheduler: Scheduler, database: Database, cluster: FakeCluster) -> None:
    scheduler.control.settings.start_seconds = 0.0
    run = queue(database)
    scheduler.round()
    scheduler.round()
    assert state(database, run)[1] == 2
    assert cluster.stopped == [f"run-{run}-1"]


def test_a_wish_to_cancel_reaches_the_worker_and_then_kills(
    scheduler: Scheduler, database: Database, cluster: FakeCluster
) -> None:
    run = queue(database)
    scheduler.round()
    scheduler.round()
    with database.writing() as session:
        row = session.get_one(RunRow, run)
        row.cancel_requested_at = row.created_at
    scheduler.control.settings.cancel_grace_seconds = 1e9
    scheduler.round()
    stop = scheduler.control.storage.read_model(f"{attempt_folder(run, 1)}/stop", Stop)
    assert (stop.reason, state(database, run)[0]) == ("user_request", "STARTING")
    scheduler.control.settings.cancel_grace_seconds = -1.0
    scheduler.round()
    assert state(database, run)[0] == "CANCELLED"
    assert cluster.stopped == [f"run-{run}-1"]


def test_one_of_two_schedulers_leads(database: Database) -> None:
    first, second = Leadership(database, 60.0), Leadership(database, 60.0)
    assert first.claim()
    assert not second.claim()
    assert first.claim()
    first.release()
    assert second.claim()


def test_a_scheduler_that_lost_its_lease_writes_nothing(
    scheduler: Scheduler, database: Database, tmp_path: Path
) -> None:
    run = queue(database)
    scheduler.control.lease._seconds = 0.0
    assert scheduler.control.lease.claim()
    assert Leadership(database, 60.0).claim()
    with pytest.raises(LostLeadership):
        scheduler.admit()
    assert state(database, run) == ("QUEUED", 0)


def test_a_job_that_no_attempt_waits_for_is_stopped_at_the_second_look(
    scheduler: Scheduler, database: Database, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.scheduler.loop.ORPHAN_SECONDS", -1.0)
    run = queue(database)
    scheduler.round()
    scheduler.round()
    cluster.jobs |= {f"run-{run}-7": "RUNNING", "run-of-another-lab": "RUNNING", "run-unknown-1": "RUNNING"}
    scheduler.round()
    assert cluster.stopped == []
    scheduler.round()
    assert cluster.stopped == [f"run-{run}-7"]


@pytest.mark.parametrize(
    "job", ["raysubmit_8dC3", "", "run", "run-a", "run-a-0", "run-a-b-1", "run-a-1\n", "x-a-1"]
)
def test_a_job_of_somebody_else_is_no_attempt_of_ours(job: str) -> None:
    assert attempt_of(job) is None
    assert attempt_of(submission_id("0k3a", 12)) == ("0k3a", 12)


def test_jobs_with_rays_own_ids_keep_no_run_from_starting_and_are_named_once(
    scheduler: Scheduler,
    database: Database,
    cluster: FakeCluster,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("service.scheduler.loop.ORPHAN_SECONDS", -1.0)
    cluster.jobs["raysubmit_8dC3"] = "RUNNING"
    run = queue(database)
    for _ in range(3):
        scheduler.round()
    assert state(database, run) == ("STARTING", 1)
    assert cluster.stopped == []
    assert len([line for line in caplog.messages if "raysubmit_8dC3" in line]) == 1


def test_an_event_that_makes_no_legal_move_ends_its_run_and_the_others_go_on(
    scheduler: Scheduler, database: Database
) -> None:
    bad, good = queue(database), queue(database, layers=[5])
    scheduler.round()
    scheduler.round()
    for _ in range(2):
        log_of(scheduler, bad).write(AttemptStarted(host="h", pid=1, device="cpu"))
    write_success(log_of(scheduler, good))
    scheduler.round()
    assert state(database, bad)[0] == "FAILED"
    assert state(database, good)[0] == "SUCCEEDED"
    with database.reading() as session:
        expected = "event 2 cannot be applied: a run that is RUNNING cannot become RUNNING"
        assert session.get_one(RunRow, bad).message == expected


def test_a_message_that_no_database_keeps_is_kept_in_other_letters(
    scheduler: Scheduler, database: Database
) -> None:
    run = queue(database)
    scheduler.round()
    scheduler.round()
    log_of(scheduler, run).write(AttemptFailed(reason="internal_error", message="zero \0 byte"))
    scheduler.round()
    with database.reading() as session:
        assert session.get_one(RunRow, run).message == "zero \\0 byte"


def test_a_run_cancelled_between_the_look_and_the_claim_stays_cancelled(
    scheduler: Scheduler, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = queue(database), queue(database, layers=[5])
    original = Control.leading

    def cancelling(control: Control):
        with database.writing() as session:
            apply_action(session, session.get_one(RunRow, first), "cancel")
        return original(control)

    assert scheduler.control.lease.claim()
    scheduler._aside_noted = True
    monkeypatch.setattr(Control, "leading", cancelling)
    assert scheduler.admit() == [second]
    assert state(database, first) == ("CANCELLED", 0)


def test_what_breaks_one_step_of_a_round_keeps_the_next_from_nothing(
    scheduler: Scheduler,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(session: object, live: object) -> None:
        raise RuntimeError("a fault of our own")

    monkeypatch.setattr("service.scheduler.loop.spent_accounts", broken)
    run = queue(database)
    for _ in range(3):
        scheduler.round()
    assert state(database, run) == ("STARTING", 1)
    assert len([line for line in caplog.messages if "a fault of our own" in line]) == 1


def test_a_step_that_fails_in_any_way_ends_no_thread(scheduler: Scheduler) -> None:
    ended, third, taken = threading.Event(), threading.Event(), []

    def step() -> None:
        taken.append(True)
        if len(taken) == 3:
            third.set()
        raise RuntimeError("a fault of our own")

    assert scheduler.control.lease.claim()
    thread = run_periodically(scheduler.control, ended, "broken", 0.01, step)
    assert third.wait(60)
    assert thread.is_alive()
    ended.set()
    thread.join(60)


def test_a_lease_that_ends_later_than_any_can_is_taken_over_and_told(database: Database) -> None:
    first, second = Leadership(database, 15.0), Leadership(database, 15.0)
    assert first.claim()
    assert not second.claim()
    with database.writing() as session:
        clock = database.clock(session)
        assert missing_leader(session, "scheduler", clock, 15.0) is None
        session.execute(update(LeaderRow).values(until=clock + longest(15.0) + 3600.0))
    with database.reading() as session:
        told = missing_leader(session, "scheduler", clock, 15.0)
    assert told is not None
    assert "the clock was set back" in told
    assert second.claim()
    assert not first.claim()


def test_readyz_says_when_nobody_schedules_for_a_lease_from_a_clock_that_was_set_back(
    client: TestClient, settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.api.routes.health.FRESH_SECONDS", 0.0)
    assert Leadership(database, settings.lead_seconds).claim()
    assert client.get("/readyz").json()["parts"]["scheduler"] == "ok"
    with database.writing() as session:
        session.execute(update(LeaderRow).values(until=database.clock(session) + 7200.0))
    assert "the clock was set back" in client.get("/readyz").json()["parts"]["scheduler"]
