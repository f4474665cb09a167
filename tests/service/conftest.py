"""A lab's application over a real database, without the cluster."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.db.engine import Database
from service.local_keys import first_key
from service.settings import Settings
from tests.support.databases import new_database
from tests.support.webhook_server import WebhookServer, serve_webhooks


@pytest.fixture(params=["sqlite", "postgresql"])
def database_kind(request: pytest.FixtureRequest) -> str:
    """Each kind in turn."""
    return str(request.param)


@pytest.fixture
def database_url(request: pytest.FixtureRequest, database_kind: str, tmp_path: Path) -> str:
    """A new database of each kind, migrated."""
    return new_database(request, database_kind, tmp_path)


@pytest.fixture
def empty_database_url(request: pytest.FixtureRequest, database_kind: str, tmp_path: Path) -> str:
    """A new database of each kind without tables, for tests that migrate it."""
    return new_database(request, database_kind, tmp_path, migrated=False)


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    hosts = ["testserver"]  # what Starlette's test client calls itself
    return Settings(
        data_dir=tmp_path, database_url=database_url, allowed_hosts=hosts, cpus=2, retry_seconds=0.0
    )


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    made = Database(settings.database_url)
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
def webhook_server() -> Iterator[WebhookServer]:
    """A server that webhooks may call."""
    with serve_webhooks() as made:
        yield made
