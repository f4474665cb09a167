"""Worker groups that wait are used where they fit, and sent home where they are in the way."""

import pytest

from service.db.engine import Database
from service.db.tables import AttemptRow, RunRow
from service.scheduler.loop import Scheduler
from service.settings import Settings
from tests.support.builders import experiment
from tests.support.control import new_scheduler
from tests.support.fakes import FakeCluster
from tests.support.runs import log_of, queue, state, write_success
from workers.contract import (
    Assignment,
    WarmWorker,
    handover_path,
    host_shape,
    idle_path,
    retire_path,
    submission_id,
)

HOST = "run-old-1"


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
def scheduler(settings: Settings, database: Database, cluster: FakeCluster) -> Scheduler:
    return new_scheduler(settings, database, cluster)


def wait_idle(
    scheduler: Scheduler, cluster: FakeCluster, ticket_index: int = 1, cpus: int = 1, **changes: object
) -> None:
    """A worker group that has done an earlier run of this shape."""
    shape = host_shape(experiment(**changes))
    idle = WarmWorker(job=HOST, ticket_index=ticket_index, shape=shape, cpus=cpus, gpus=0)
    scheduler.control.storage.write_model(idle_path(HOST), idle)
    cluster.jobs[HOST] = "RUNNING"


def handed_over(scheduler: Scheduler, ticket_index: int = 2) -> Assignment:
    return scheduler.control.storage.read_model(handover_path(HOST, ticket_index), Assignment)


def test_a_run_goes_to_a_host_that_waits(
    scheduler: Scheduler, database: Database, cluster: FakeCluster
) -> None:
    wait_idle(scheduler, cluster, ticket_index=3)
    run = queue(database)
    for _ in range(2):
        scheduler.round()
    assert handed_over(scheduler, 4) == Assignment(run_id=run, attempt=1)
    assert list(cluster.jobs) == [HOST]
    write_success(log_of(scheduler, run))
    scheduler.round()
    assert state(database, run) == ("SUCCEEDED", 1)


def test_a_host_is_given_one_run_at_a_time(
    scheduler: Scheduler, database: Database, cluster: FakeCluster
) -> None:
    wait_idle(scheduler, cluster)
    runs = [queue(database), queue(database, layers=[5])]
    for _ in range(2):
        scheduler.round()
    assert handed_over(scheduler).run_id == runs[0]
    assert set(cluster.jobs) == {HOST, submission_id(runs[1], 1)}


def test_a_kill_between_decision_and_handover_decides_the_same(
    scheduler: Scheduler,
    settings: Settings,
    database: Database,
    cluster: FakeCluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wait_idle(scheduler, cluster)
    run = queue(database)
    scheduler.round()

    def die(*_: object) -> None:
        raise OSError("killed here")

    monkeypatch.setattr(scheduler.hosts, "hand_over", die)
    scheduler.round()
    scheduler.control.lease.release()
    successor = new_scheduler(settings, database, cluster)
    successor.round()
    assert handed_over(scheduler) == Assignment(run_id=run, attempt=1)
    with database.reading() as session:
        row = session.get_one(AttemptRow, (run, 1))
        assert (row.job, row.ticket_index) == (HOST, 2)
        assert row.submitted_at is not None


def test_a_host_that_died_while_it_waited_is_not_called(
    scheduler: Scheduler, database: Database, cluster: FakeCluster
) -> None:
    wait_idle(scheduler, cluster)
    cluster.jobs[HOST] = "FAILED"
    run = queue(database)
    for _ in range(2):
        scheduler.round()
    assert cluster.jobs[submission_id(run, 1)] == "RUNNING"
    assert scheduler.hosts.idle() == []


def test_a_host_that_went_home_as_it_was_called_costs_the_run_no_try(
    scheduler: Scheduler, database: Database, cluster: FakeCluster
) -> None:
    wait_idle(scheduler, cluster)
    run = queue(database)
    for _ in range(2):
        scheduler.round()
    cluster.jobs[HOST] = "SUCCEEDED"
    scheduler.control.storage.delete(idle_path(HOST))
    scheduler.reconciler.forget()
    scheduler.round()
    with database.reading() as session:
        assert session.get_one(RunRow, run).failures == 0
        assert session.get_one(AttemptRow, (run, 1)).reason == "node_fault"


def test_a_host_in_the_way_is_sent_home(
    scheduler: Scheduler, database: Database, cluster: FakeCluster
) -> None:
    wait_idle(scheduler, cluster, cpus=1)
    queue(database, resources={"workers": 2})
    for _ in range(2):
        scheduler.round()
    assert scheduler.control.storage.exists(retire_path(HOST))


def test_a_host_that_is_not_in_the_way_may_stay(
    scheduler: Scheduler, database: Database, cluster: FakeCluster
) -> None:
    wait_idle(scheduler, cluster, resources={"cpus_per_worker": 2})
    queue(database)
    for _ in range(2):
        scheduler.round()
    assert not scheduler.control.storage.exists(retire_path(HOST))


def test_a_waiting_or_working_host_is_no_orphan(
    scheduler: Scheduler, database: Database, cluster: FakeCluster
) -> None:
    run = queue(database)
    for _ in range(2):
        scheduler.round()
    write_success(log_of(scheduler, run))
    scheduler.round()
    host = submission_id(run, 1)
    idle = WarmWorker(job=host, ticket_index=1, shape=host_shape(experiment()), cpus=1, gpus=0)
    scheduler.control.storage.write_model(idle_path(host), idle)
    scheduler._orphans_sought = -1e9
    scheduler.round()
    queue(database, layers=[6])
    for _ in range(2):
        scheduler.round()
    scheduler.control.storage.delete(idle_path(host))
    scheduler._orphans_sought = -1e9
    scheduler.round()
    assert cluster.stopped == []
