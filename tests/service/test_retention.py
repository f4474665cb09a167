"""Of a run that has ended what a retry needs stays until it is old; the rest goes, whoever dies at it."""

import json
import os
import signal
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from grafting_core.storage.checksums import with_checksum
from grafting_core.storage.failpoints import arm
from grafting_core.storage.storage import Storage
from service.cli.main import app as graft
from service.db.engine import Database
from service.db.tables import RunRow, now
from service.domain.checkpoint_retention import Policy, prune, runs_to_prune, surplus
from service.domain.invariants import verify
from service.domain.run_controls import apply_action
from service.domain.run_lifecycle import transition
from service.domain.submission import submit
from service.local_keys import first_key
from service.scheduler.checkpoint_cleanup import CheckpointCleaner
from service.schemas.runs import RunState
from service.settings import Settings
from tests.support.api_server import serving
from tests.support.builders import experiment
from workers.contract import BEST, BestCheckpoint

PATHS: dict[RunState, tuple[RunState, ...]] = {
    "QUEUED": (),
    "RUNNING": ("STARTING", "RUNNING"),
    "PAUSED": ("STARTING", "RUNNING", "PAUSED"),
    "SUCCEEDED": ("STARTING", "RUNNING", "SUCCEEDED"),
    "FAILED": ("STARTING", "RUNNING", "FAILED"),
    "STOPPED": ("STARTING", "RUNNING", "STOPPED"),
    "CANCELLED": ("CANCELLED",),
}


@pytest.fixture
def storage(settings: Settings) -> Storage:
    return Storage(settings.storage)


def made(database: Database, storage: Storage, state: RunState, steps: int = 3) -> str:
    """A run in that state with checkpoints of two stages, and a published model."""
    with database.writing() as session:
        run = submit(session, experiment(), "digest", None)
        for step in PATHS[state]:
            transition(session, run, step)
    for stage in ("one", "two"):
        for step in range(1, steps + 1):
            storage.write_bytes(name(run.id, step, stage), with_checksum(bytes([step]) * 1000))
    storage.write_bytes("models/key/model.safetensors", b"published")
    return run.id


def name(run: str, step: int, stage: str = "one") -> str:
    return f"runs/{run}/checkpoints/{stage}/{step:08d}-a0001.safetensors"


def left(storage: Storage, run: str, stage: str = "one") -> list[str]:
    """Steps that are there, and other names as they are."""
    folder = f"runs/{run}/checkpoints/{stage}"
    names = [*storage.names(folder), *storage.unfinished(folder)]
    return [each.split("-")[0].lstrip("0") if each.endswith(".safetensors") else each for each in names]


def tidy(settings: Settings, database: Database, storage: Storage, **changes: object) -> None:
    CheckpointCleaner(settings.model_copy(update=changes), database, storage).round()


def age(database: Database, run: str, days: float) -> None:
    with database.writing() as session:
        session.get_one(RunRow, run).ended_at = now() - timedelta(days=days)


@pytest.mark.parametrize("state", ["FAILED", "STOPPED", "CANCELLED"])
def test_the_newest_stays_of_a_run_that_can_be_retried(
    database: Database, settings: Settings, storage: Storage, state: RunState
) -> None:
    run = made(database, storage, state)
    tidy(settings, database, storage)
    assert left(storage, run, "one") == left(storage, run, "two") == ["3"]


def test_nothing_stays_of_a_run_that_succeeded_but_what_it_published(
    database: Database, settings: Settings, storage: Storage
) -> None:
    run = made(database, storage, "SUCCEEDED")
    tidy(settings, database, storage)
    assert left(storage, run) == []
    assert storage.read_bytes("models/key/model.safetensors") == b"published"


@pytest.mark.parametrize("state", ["QUEUED", "RUNNING", "PAUSED"])
def test_runs_that_have_not_ended_are_left_alone_and_so_are_those_of_others(
    client: TestClient, database: Database, settings: Settings, storage: Storage, state: RunState
) -> None:
    run = made(database, storage, state)
    storage.write_bytes(name("0foreignrun000", 1), with_checksum(b"another lab's"))
    tidy(settings, database, storage, checkpoint_days=0.0)
    settings.checkpoint_days = 0.0
    assert client.post("/api/v1/admin/gc", json={}).json()["files"] == 0
    assert left(storage, run) == ["1", "2", "3"]
    assert left(storage, "0foreignrun000") == ["1"]


def test_a_damaged_newest_one_is_no_reason_to_lose_the_one_before(
    database: Database, settings: Settings, storage: Storage
) -> None:
    run = made(database, storage, "FAILED")
    storage.write_bytes(name(run, 3), storage.read_bytes(name(run, 3))[:-5])
    storage.write_bytes(f"{name(run, 4)}.damaged", b"set aside")
    storage.write_bytes(f"runs/{run}/checkpoints/one/.tmp-abc", b"half of one")
    tidy(settings, database, storage)
    assert left(storage, run) == ["2"]


def test_what_is_old_goes_altogether(database: Database, settings: Settings, storage: Storage) -> None:
    young, old = (made(database, storage, "FAILED") for _ in range(2))
    tidy(settings, database, storage)
    age(database, old, 31)
    age(database, young, 29)
    tidy(settings, database, storage, checkpoint_days=float("inf"))
    assert left(storage, old) == ["3"]
    tidy(settings, database, storage)
    assert (left(storage, young), left(storage, old)) == (["3"], [])


def test_the_best_stays_where_that_is_wished(
    database: Database, settings: Settings, storage: Storage
) -> None:
    failed, succeeded = made(database, storage, "FAILED"), made(database, storage, "SUCCEEDED")
    for run in (failed, succeeded):
        note = BestCheckpoint(name=name(run, 1).rsplit("/", 1)[1], loss=0.5)
        storage.write_model(f"runs/{run}/checkpoints/one/{BEST}", note)
    tidy(settings, database, storage, keep_best=True)
    assert left(storage, failed) == ["1", "3", BEST]
    assert left(storage, succeeded) == ["1", BEST]
    age(database, succeeded, 31)
    tidy(settings, database, storage, keep_best=True)
    assert left(storage, succeeded) == []


def test_each_run_is_looked_through_once_and_anew_after_it_was_retried(
    database: Database, settings: Settings, storage: Storage
) -> None:
    run = made(database, storage, "STOPPED")
    keeper = CheckpointCleaner(settings, database, storage)
    assert [keeper.round(), keeper.round()] == [1, 0]
    with database.writing() as session:
        apply_action(session, session.get_one(RunRow, run), "retry")
    assert keeper.round() == 0
    storage.write_bytes(name(run, 4), with_checksum(b"of the next attempt"))
    with database.writing() as session:
        apply_action(session, session.get_one(RunRow, run), "cancel")
        assert verify(session) == []
    assert keeper.round() == 1
    assert left(storage, run) == ["4"]


def test_a_run_that_was_taken_up_since_it_was_looked_at_keeps_all(
    database: Database, settings: Settings, storage: Storage
) -> None:
    run, policy = made(database, storage, "FAILED"), Policy(best=False, days=0.0)
    with database.reading() as session:
        (seen,) = runs_to_prune(session, policy, 10)
    spare = surplus(storage, seen, policy)
    assert len(spare.paths) == 6
    with database.writing() as session:
        apply_action(session, session.get_one(RunRow, run), "retry")
    assert not prune(database, storage, spare, policy)
    assert left(storage, run) == ["1", "2", "3"]


def test_killed_in_the_midst_the_newest_is_there_and_the_next_round_ends_it(
    database: Database, settings: Settings, storage: Storage
) -> None:
    run = made(database, storage, "FAILED", steps=5)
    database.engine.dispose()
    child = os.fork()
    if not child:
        try:
            arm("retention/delete:kill:3")
            tidy(settings, Database(settings.database_url), storage)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len(left(storage, run, "one") + left(storage, run, "two")) == 7
    assert left(storage, run, "one")[-1] == left(storage, run, "two")[-1] == "5"
    tidy(settings, database, storage)
    assert left(storage, run, "one") == left(storage, run, "two") == ["5"]


def test_files_that_refuse_to_go_keep_no_other_run_waiting(
    database: Database, settings: Settings, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stubborn, other = (made(database, storage, "FAILED") for _ in range(2))
    delete = Storage.delete

    def refusing(self: Storage, path: str) -> None:
        if stubborn in path:
            raise PermissionError(path)
        delete(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "delete", refusing)
        tidy(settings, database, storage)
    assert (left(storage, stubborn), left(storage, other)) == (["1", "2", "3"], ["3"])
    tidy(settings, database, storage)
    assert left(storage, stubborn) == ["3"]


def test_two_who_tidy_up_at_once_do_no_harm(database: Database, settings: Settings, storage: Storage) -> None:
    runs = [made(database, storage, "FAILED") for _ in range(5)]
    failures: list[BaseException] = []

    def work() -> None:
        try:
            tidy(settings, database, storage)
        except Exception as error:  # noqa: BLE001 - whatever it was, the test has to say so
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [left(storage, run) for run in runs] == [["3"]] * 5


@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_the_command_line_says_what_would_go_and_lets_it_go(
    settings: Settings, database: Database, storage: Storage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = made(database, storage, "FAILED")
    tidy(settings, database, storage)
    storage.write_bytes(name(run, 1), with_checksum(b"x" * 968))  # by a dead worker, too late
    with serving(settings) as port:
        monkeypatch.setenv("GRAFTLAB_KEY", first_key(settings.data_dir))
        dry = json.loads(_gc(port, "--dry-run", "--json"))
        assert dry["runs"] == [{"run_id": run, "state": "FAILED", "files": 1, "bytes": 1000}]
        assert left(storage, run) == ["1", "3"]
        assert "1 kB freed: 1 files of 1 runs" in _gc(port)
        assert left(storage, run) == ["3"]
        assert "0 B freed" in _gc(port)


def _gc(port: int, *words: str) -> str:
    done = CliRunner().invoke(graft, ["admin", "gc", *words, "--url", f"http://127.0.0.1:{port}"])
    assert done.exit_code == 0, done.output
    return done.output
