"""Two schedulers as processes: one leads, and whichever is frozen and thawed changes nothing."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.db.migrate import upgrade
from service.db.tables import LeaderRow
from tests.faults.rig import Rig


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    made.settings.lead_seconds = 0.6
    upgrade(made.database)
    made.scheduler = made.new_scheduler()
    yield made
    made.database.engine.dispose()


@pytest.fixture
def child(rig: Rig) -> Iterator[int]:
    """Another scheduler, in a process of its own, round after round."""
    pid = os.fork()
    if not pid:
        try:
            own = Rig(rig.settings.data_dir)
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


def leader(rig: Rig) -> str:
    with rig.database.reading() as session:
        row = session.get(LeaderRow, 1)
        return row.holder if row else ""


def test_a_frozen_leader_that_is_thawed_changes_nothing(rig: Rig, child: int) -> None:
    until(lambda: str(child) in leader(rig))
    first = rig.submit(layers=[1])
    until(lambda: rig.state(first) == "STARTING")
    _freeze_between_transactions(rig, child)
    rig.submit(layers=[2])
    until(lambda: rig.scheduler.leadership.claim())
    rig.scheduler.leadership._seconds = 60.0
    before = rig.drain()
    assert set(before.values()) == {("SUCCEEDED", 1)}
    os.kill(child, signal.SIGCONT)
    time.sleep(1.0)
    assert rig.states() == before
    assert str(child) not in leader(rig)
    assert rig.violations() == []


def _freeze_between_transactions(rig: Rig, child: int) -> None:
    """SQLite has one write lock: whoever is stopped with it in hand stops everybody, until it is killed."""
    while True:
        os.kill(child, signal.SIGSTOP)
        try:
            rig.submit(layers=[4])
        except Exception:  # noqa: BLE001 - it held the lock
            os.kill(child, signal.SIGCONT)
            time.sleep(0.05)
            continue
        return
