"""Migrations and models agree on both databases, and both keep what they acknowledged."""

import subprocess
import sys

import pytest
from sqlalchemy import inspect

from service.db.engine import Database
from service.db.migrate import check, downgrade, upgrade
from service.db.tables import Base
from service.domain.submission import submit
from service.settings import Settings
from tests.support.builders import experiment


def test_migrations_give_the_tables_of_the_models(empty_database_url: str) -> None:
    database = Database(empty_database_url)
    upgrade(database)
    check(database)
    database.engine.dispose()


def test_migrations_go_down_and_up_again(database: Database) -> None:
    downgrade(database, "base")
    assert not set(inspect(database.engine).get_table_names()) & set(Base.metadata.tables)
    upgrade(database)
    check(database)


def test_upgrading_twice_changes_nothing(database: Database) -> None:
    upgrade(database)
    check(database)


def test_an_exception_rolls_everything_back(database: Database) -> None:
    class Oops(Exception):
        """A fault in mid-transaction."""

    try:
        with database.writing() as session:
            submit(session, experiment(), "digest", "key")
            raise Oops
    except Oops:
        pass
    with database.writing() as session:
        assert submit(session, experiment(), "digest", "key").last_event == 1


def test_the_databases_clock_advances(database: Database) -> None:
    with database.reading() as session:
        first = database.clock(session)
        assert first > 1.7e9
        assert database.clock(session) >= first


@pytest.mark.parametrize(
    "module", ["service.app", *(f"service.processes.{name}" for name in ("api", "scheduler", "studies"))]
)
def test_the_service_loads_neither_torch_nor_diffusers_nor_ray(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'diffusers', 'ray'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFTLAB_PORT", "1234")
    assert Settings().port == 1234
