"""A worker group that has done its ticket takes the next one, or goes home."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from grafting_core.storage.storage import Storage
from tests.support.builders import experiment
from workers import reuse
from workers.contract import (
    Assignment,
    RunTicket,
    WarmWorker,
    begin_path,
    handover_path,
    host_shape,
    idle_path,
    retire_path,
    submission_id,
    ticket_path,
)
from workers.reuse import WarmGroup, receive_tickets

JOB = submission_id("r1", 1)


def ticket(folder: Path, run: str = "r1", warm_seconds: float = 30.0) -> RunTicket:
    return RunTicket(run_id=run, attempt=1, work=experiment(), storage=str(folder), warm_seconds=warm_seconds)


class Group:
    """Driver and one worker, as a job has them, with a note of what each did."""

    def __init__(self, folder: Path, first: RunTicket) -> None:
        self.storage, self.notes = Storage(str(folder)), list[str]()
        self.host = WarmGroup(self.storage, first, self._begin)
        self.worker = threading.Thread(target=self._work, args=(first,), daemon=True)
        self.host.start()
        self.worker.start()

    def _begin(self, ticket: RunTicket) -> Callable[[], None]:
        self.notes.append(f"begin {ticket.run_id}")
        return lambda: self.notes.append(f"end {ticket.run_id}")

    def _work(self, first: RunTicket) -> None:
        for each in receive_tickets(self.storage, first, leads=True):
            self.notes.append(f"work {each.run_id}")
        self.notes.append("home")

    def until_idle(self) -> WarmWorker:
        while not self.storage.exists(idle_path(JOB)):
            time.sleep(0.01)
        return self.storage.read_model(idle_path(JOB), WarmWorker)

    def until_home(self) -> list[str]:
        self.worker.join(20)
        self.host.close()
        return self.notes


def hand_over(storage: Storage, next_one: RunTicket, ticket_index: int) -> None:
    storage.write_model(ticket_path(next_one.run_id, 1), next_one)
    storage.write_model(handover_path(JOB, ticket_index), Assignment(run_id=next_one.run_id, attempt=1))


def test_a_group_takes_the_ticket_that_is_handed_over_and_goes_home_when_bidden(tmp_path: Path) -> None:
    group = Group(tmp_path, ticket(tmp_path))
    idle = group.until_idle()
    assert (idle.job, idle.ticket_index, idle.cpus) == (JOB, 1, 1)
    assert idle.shape == host_shape(experiment(name="another design", layers=[5]))
    hand_over(group.storage, ticket(tmp_path, "r2"), 2)
    while "work r2" not in group.notes:
        time.sleep(0.01)
    assert group.until_idle().ticket_index == 2
    group.storage.write_bytes(retire_path(JOB), b"")
    expected = ["begin r1", "work r1", "end r1", "begin r2", "work r2", "end r2", "home"]
    assert group.until_home() == expected
    assert group.storage.names("hosts/idle") == group.storage.names(f"hosts/{JOB}") == []


def test_a_group_that_nobody_wants_goes_home(tmp_path: Path) -> None:
    group = Group(tmp_path, ticket(tmp_path, warm_seconds=0.3))
    assert group.until_home() == ["begin r1", "work r1", "end r1", "home"]


def test_without_patience_there_is_no_waiting(tmp_path: Path) -> None:
    group = Group(tmp_path, ticket(tmp_path, warm_seconds=0.0))
    assert group.until_home() == ["begin r1", "work r1", "home", "end r1"]
    assert group.storage.names("hosts/idle") == []


def test_a_ticket_handed_over_as_the_patience_ends_is_still_taken(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    hand_over(storage, ticket(tmp_path, "r2", warm_seconds=0.01), 2)
    group = Group(tmp_path, ticket(tmp_path, warm_seconds=0.01))
    assert "work r2" in group.until_home()


def test_a_worker_whose_driver_is_gone_goes_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reuse, "DRIVER_SECONDS", 0.2)
    storage = Storage(str(tmp_path))
    assert [t.run_id for t in receive_tickets(storage, ticket(tmp_path, warm_seconds=0.1), leads=False)] == [
        "r1"
    ]
    assert not storage.exists(begin_path(JOB, 2))


def test_other_resources_or_another_backbone_are_another_shape() -> None:
    usual = host_shape(experiment())
    assert host_shape(experiment(resources={"workers": 2})) != usual
    assert host_shape(experiment(evaluate={"samples": 20})) == usual


def test_a_ticket_of_an_older_version_is_read_under_its_own_names(tmp_path: Path) -> None:
    written = ticket(tmp_path).model_dump(mode="json") | {"accumulation_steps": 4}
    written["micro_batches"] = written.pop("accumulation_steps")
    older = RunTicket.model_validate_json(json.dumps(written))
    assert older.accumulation_steps == 4
    assert older.model_dump(mode="json").keys() == ticket(tmp_path).model_dump(mode="json").keys()
