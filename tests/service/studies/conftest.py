"""Labs for studies, on SQLite alone where the database is not what a test is about."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from grafting_core.backbones.base import Backbone
from grafting_core.storage.failpoints import arm
from service.db.engine import Database
from service.settings import Settings
from tests.support.databases import new_database
from tests.support.study_harness import StudyHarness


@pytest.fixture
def new_study(new_harness: Callable[..., StudyHarness], database_kind: str) -> Callable[..., StudyHarness]:
    """Makes labs on each kind of database, each lab with one study."""
    return lambda name, **changes: new_harness(database_kind, name, **changes)


@pytest.fixture
def new_sqlite_study(new_harness: Callable[..., StudyHarness]) -> Callable[..., StudyHarness]:
    """Makes labs on SQLite, each with one study."""
    return lambda name, **changes: new_harness("sqlite", name, **changes)


@pytest.fixture
def new_harness(
    request: pytest.FixtureRequest, tmp_path: Path, backbone: Backbone
) -> Iterator[Callable[..., StudyHarness]]:
    made: list[Database] = []

    def make(kind: str, name: str, **changes: object) -> StudyHarness:
        folder = tmp_path / name
        folder.mkdir()
        settings = Settings(data_dir=folder, database_url=new_database(request, kind, folder))
        made.append(Database(settings.database_url))
        return StudyHarness(settings, made[-1], backbone, **changes)

    yield make
    arm("")
    for database in made:
        database.engine.dispose()
