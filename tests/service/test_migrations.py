"""Every schema that was released is brought to this one with its data, however often it is interrupted."""

import ast
import os
import signal
import sqlite3
import sys
import threading
import time
from pathlib import Path

import pytest
from alembic.util.exc import CommandError
from sqlalchemy import create_engine, func, select, text

import migrations
from grafting_core.storage.failpoints import arm
from service.db.engine import Database
from service.db.migrate import check, downgrade, upgrade, versions
from service.db.tables import AccountRow, AttemptRow, EventRow, ExperimentRow, RunRow, StageRow
from service.domain.invariants import verify
from service.domain.run_lifecycle import record
from service.domain.run_queries import events_after
from service.domain.submission import submit
from tests.support.builders import experiment

RELEASED = Path(__file__).parent / "released"
REVISIONS = sorted((Path(migrations.__file__).parent / "versions").glob("0*.py"))
RELEASES = sorted({path.name.rsplit("-", 1)[0] for path in RELEASED.iterdir()})
TABLES = (ExperimentRow, RunRow, AttemptRow, StageRow, EventRow)


def restore(release: str, url: str) -> Database:
    """A database as that release left it."""
    kind = "sqlite" if url.startswith("sqlite") else "postgresql"
    script = (RELEASED / f"{release}-{kind}.sql").read_text()
    if kind == "sqlite":
        with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
            connection.executescript(script)
        connection.close()
    else:
        engine = create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(script)
        engine.dispose()
    return Database(url)


def counts(database: Database) -> list[int]:
    with database.reading() as session:
        return [session.scalar(select(func.count()).select_from(table)) or 0 for table in TABLES]


def assert_as_released(database: Database) -> None:
    """Rows of every kind, states, and use charged as if accounts had always been there."""
    with database.reading() as session:
        states = {run.experiment.name: run.state for run in session.scalars(select(RunRow))}
        account = session.get_one(AccountRow, ("lab", "lab"))
        assert account.device_seconds == pytest.approx(13.5)
        assert verify(session) == []
    assert states == {"done": "SUCCEEDED", "failed": "FAILED", "running": "RUNNING", "waiting": "QUEUED"}
    assert counts(database) == [4, 4, 3, 1, 19]


@pytest.mark.parametrize("release", RELEASES)
def test_a_released_schema_goes_up_down_and_up_again_with_its_data(
    release: str, empty_database_url: str
) -> None:
    database = restore(release, empty_database_url)
    upgrade(database)
    check(database)
    assert_as_released(database)
    downgrade(database, "0001")
    upgrade(database)
    check(database)
    assert_as_released(database)
    database.engine.dispose()


def test_revisions_import_no_live_code() -> None:
    """What the service imports changes later; a revision must not."""
    assert [path.stem[:4] for path in REVISIONS] == versions()
    imported = set()
    for node in (node for path in REVISIONS for node in ast.walk(ast.parse(path.read_text()))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or ".").split(".")[0])
    assert imported - sys.stdlib_module_names == {"alembic", "sqlalchemy"}


def _killed_at(url: str, step: int) -> int:
    child = os.fork()
    if not child:
        try:
            arm(f"migrate/step:kill:{step}")
            upgrade(Database(url))
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.large
@pytest.mark.parametrize("release", RELEASES)
def test_a_migration_killed_at_any_step_is_rolled_back_and_done_by_the_next(
    release: str, empty_database_url: str
) -> None:
    restore(release, empty_database_url).engine.dispose()
    for step in range(1, len(versions())):
        assert _killed_at(empty_database_url, step) == -signal.SIGKILL
    database = Database(empty_database_url)
    upgrade(database)
    assert_as_released(database)
    database.engine.dispose()


def test_processes_that_start_together_migrate_once(empty_database_url: str) -> None:
    databases = [Database(empty_database_url) for _ in range(3)]
    failures: list[BaseException] = []

    def start(database: Database) -> None:
        try:
            upgrade(database)
        except Exception as error:  # noqa: BLE001 - whatever it was, the test has to say so
            failures.append(error)

    threads = [threading.Thread(target=start, args=[database]) for database in databases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    check(databases[0])
    for database in databases:
        database.engine.dispose()


def test_a_newer_schema_is_refused(database: Database) -> None:
    with database.writing() as session:
        session.connection().exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(Exception, match="9999"):
        upgrade(database)


def test_what_mlflow_was_told_stands_in_the_run_afterwards(database_url: str) -> None:
    database = Database(database_url)
    with database.writing() as session:
        run_id = submit(session, experiment(), "digest", None).id
    downgrade(database, "0012")
    with database.writing() as session:
        url = "http://127.0.0.1:5000/#/experiments/17/runs/abc"
        session.execute(text("UPDATE runs SET mlflow_url = :url, last_event = 9"), {"url": url})
        columns = "(run_id, mlflow_run_id, last_seq, closed)"
        cursor = f"INSERT INTO tracking_cursors {columns} VALUES (:run, 'abc', 7, :no)"
        session.execute(text(cursor), {"run": run_id, "no": False})
    upgrade(database)
    with database.reading() as session:
        run = session.get_one(RunRow, run_id)
        assert (run.mlflow_experiment_id, run.mlflow_run_id, run.mlflow_event) == ("17", "abc", 7)
    database.engine.dispose()


def test_tables_are_not_renamed_while_a_scheduler_leads(database_url: str) -> None:
    database = Database(database_url)
    downgrade(database, "0016")
    with database.writing() as session:
        lease = "INSERT INTO scheduler_lease (id, holder, until) VALUES (1, 'older', :until)"
        session.execute(text(lease), {"until": time.time() + 30})
    with pytest.raises(CommandError, match=r"stop it .*graft down"):
        upgrade(database)
    with database.writing() as session:
        session.execute(text("UPDATE scheduler_lease SET until = 0"))
    upgrade(database)
    check(database)
    database.engine.dispose()


def test_what_users_asked_for_before_the_renaming_is_still_shown(database_url: str) -> None:
    database = Database(database_url)
    with database.writing() as session:
        run = submit(session, experiment(), "digest", None)
        run_id = run.id
        record(session, run, "request", {"request": "pause"})
    downgrade(database, "0016")
    with database.reading() as session:
        kinds = session.scalars(text("SELECT kind FROM events ORDER BY seq")).all()
    assert "wish" in kinds
    upgrade(database)
    with database.reading() as session:
        assert [event.request for event in events_after(session, run_id, 0) if event.kind == "request"] == [
            "pause"
        ]
    database.engine.dispose()
