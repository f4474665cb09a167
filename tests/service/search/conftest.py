"""Labs for studies, on SQLite alone where the database is not what a test is about."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from grafting_core.backbones.registry import Backbone
from grafting_core.storage.failpoints import arm
from service.db.engine import Database
from service.db.migrate import upgrade
from service.settings import Settings
from tests.service.conftest import empty_database
from tests.service.search.bench import Bench


@pytest.fixture
def bench(new_bench: Callable[..., Bench], database_kind: str) -> Callable[..., Bench]:
    """Makes labs on each kind of database, each lab with one study."""
    return lambda name, **changes: new_bench(database_kind, name, **changes)


@pytest.fixture
def small(new_bench: Callable[..., Bench]) -> Callable[..., Bench]:
    """Makes labs on SQLite, each with one study."""
    return lambda name, **changes: new_bench("sqlite", name, **changes)


@pytest.fixture
def new_bench(
    request: pytest.FixtureRequest, tmp_path: Path, backbone: Backbone
) -> Iterator[Callable[..., Bench]]:
    made: list[Database] = []

    def make(kind: str, name: str, **changes: object) -> Bench:
        folder = tmp_path / name
        folder.mkdir()
        settings = Settings(data_dir=folder, database_url=empty_database(request, kind, folder))
        made.append(Database(settings.database_url))
        upgrade(made[-1])
        return Bench(settings, made[-1], backbone, **changes)

    yield make
    arm("")
    for database in made:
        database.engine.dispose()
