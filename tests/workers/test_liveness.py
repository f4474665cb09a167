"""A worker that cannot show life ends itself; a wish and an extended budget reach one that works."""

import threading
import time
from pathlib import Path

import pytest

from grafting_core.specs.budget import Budget, Usage
from grafting_core.storage.failpoints import arm
from grafting_core.storage.storage import Storage
from tests.support.builders import experiment
from workers.contract import RunTicket, attempt_folder, budget_path
from workers.liveness import HeartbeatThread
from workers.observer import StopCondition
from workers.usage import UsageMeter


def ticket(folder: Path, **fields: object) -> RunTicket:
    return RunTicket(run_id="r1", attempt=1, work=experiment(), storage=str(folder), **fields)  # type: ignore[arg-type]


class Frozen(Storage):
    """Storage whose writes never return, as of a network that swallows everything."""

    def write_model(self, path: str, value: object) -> None:
        threading.Event().wait(30)


@pytest.mark.parametrize("trouble", ["fails", "hangs"])
def test_a_worker_that_cannot_renew_its_heartbeat_gives_up(tmp_path: Path, trouble: str) -> None:
    given_up = threading.Event()
    storage = Frozen(str(tmp_path)) if trouble == "hangs" else Storage(str(tmp_path))
    asked = ticket(tmp_path, heartbeat_seconds=0.01, silence_seconds=0.3)
    thread = HeartbeatThread(storage, asked, given_up.set)
    arm("heartbeat:raise")
    try:
        thread.start()
        assert given_up.wait(10)
    finally:
        arm("")
        thread._stopped.set()


def test_a_worker_that_shows_life_is_left_alone(tmp_path: Path) -> None:
    given_up = threading.Event()
    asked = ticket(tmp_path, heartbeat_seconds=0.01, silence_seconds=3.0)
    thread = HeartbeatThread(Storage(str(tmp_path)), asked, given_up.set)
    thread.start()
    path = f"{attempt_folder('r1', 1)}/heartbeat"
    while not thread._storage.exists(path):
        time.sleep(0.01)
    thread.stop()
    assert not given_up.is_set()


def test_an_extension_lets_a_worker_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.observer.STOP_CHECK_SECONDS", -1.0)
    storage = Storage(str(tmp_path))
    asked = ticket(tmp_path, budget=Budget(device_seconds=10.0), spent=Usage(device_seconds=20.0))
    stop_condition = StopCondition(storage, asked, UsageMeter(asked.work, time.time()))
    storage.write_model(budget_path("r1", 1), Budget(device_seconds=1000.0))
    assert stop_condition.reason() is None
    storage.write_model(budget_path("r1", 1), Budget(device_seconds=15.0))
    assert stop_condition.reason() == "budget_exhausted"


def test_every_gpu_of_a_worker_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    meters = {
        (workers, gpus): UsageMeter(
            experiment(resources={"workers": workers, "gpus_per_worker": gpus}), time.time()
        )
        for workers, gpus in ((1, 0), (1, 8), (2, 4), (4, 0))
    }
    now[0] += 100.0
    used = {shape: round(meter.total().device_seconds) for shape, meter in meters.items()}
    assert used == {(1, 0): 100, (1, 8): 800, (2, 4): 800, (4, 0): 400}


def test_the_wall_clock_may_jump_without_being_charged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = UsageMeter(experiment(), time.time())
    monkeypatch.setattr(time, "time", lambda: 1e12)
    assert meter.total().device_seconds < 60
