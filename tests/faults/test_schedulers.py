"""Two schedulers as processes: one leads, and whichever is frozen and thawed changes nothing."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.db.tables import LeaderRow
from tests.support.lab_harness import LabHarness


@pytest.fixture
def harness(tmp_path: Path, sqlite_template: Path) -> Iterator[LabHarness]:
    shutil.copy(sqlite_template, tmp_path / "graftlab.db")
    made = LabHarness(tmp_path)
    made.settings.lead_seconds = 0.6
    made.scheduler = made.new_scheduler()
    yield made
    made.database.engine.dispose()


@pytest.fixture
def child(harness: LabHarness) -> Iterator[int]:
    """Another scheduler, in a process of its own, round after round."""
    pid = os.fork()
    if not pid:
        try:
            own = LabHarness(harness.settings.data_dir)
            own.settings.lead_seconds = 0.6
            own.scheduler = own.new_scheduler()
            while True:
                own.round()
                time.sleep(0.02)
        finally:
            os._exit(1)
    yield pid
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not done():
        assert time.monotonic() < end
        time.sleep(0.02)


def leader(harness: LabHarness) -> str:
    with harness.database.reading() as session:
        row = session.get(LeaderRow, 1)
        return row.holder if row else ""


def test_a_frozen_leader_that_is_thawed_changes_nothing(harness: LabHarness, child: int) -> None:
    until(lambda: str(child) in leader(harness))
    first = harness.submit(layers=[1])
    until(lambda: harness.state(first) == "STARTING")
    _freeze_between_transactions(harness, child)
    harness.submit(layers=[2])
    until(lambda: harness.scheduler.control.lease.claim())
    harness.scheduler.control.lease._seconds = 60.0
    before = harness.drain()
    assert set(before.values()) == {("SUCCEEDED", 1)}
    os.kill(child, signal.SIGCONT)
    time.sleep(1.0)
    assert harness.states() == before
    assert str(child) not in leader(harness)
    assert harness.violations() == []


def _freeze_between_transactions(harness: LabHarness, child: int) -> None:
    """SQLite has one write lock: whoever is stopped with it in hand stops everybody, until it is killed."""
    while True:
        os.kill(child, signal.SIGSTOP)
        try:
            harness.submit(layers=[4])
        except Exception:  # noqa: BLE001 - it held the lock
            os.kill(child, signal.SIGCONT)
            time.sleep(0.05)
            continue
        return
