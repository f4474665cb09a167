"""Checks before a part of the lab starts; each failure is reported in one sentence."""

import logging
import sqlite3
import sys
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import SettingsError

import migrations
from grafting_core.storage.storage import Storage
from service.settings import POSTGRESQL, Settings, sqlite_file

log = logging.getLogger("graftlab")
BUSY_SECONDS = 3.0
CHECKED_BYTES = 256 * 2**20
"""Size above which a database is not checked at every start; `graft admin verify` does it."""
NEEDED = ("ray", "mlflow", "torch", "uvicorn")
URLS = "sqlite:////folder/lab.db or postgresql://user:password@host/name is right"


class CannotStart(Exception):
    """Something that the lab needs is missing or wrong; the text says what, and what would be right."""


def checked_settings(**values: Any) -> Settings:
    """Read the settings. Raises CannotStart naming each variable that is not valid."""
    try:
        return Settings(**values)
    except ValidationError as error:
        wrong = [
            f"GRAFTLAB_{'_'.join(map(str, item['loc'])).upper()}={str(item['input'])[:100]}: {item['msg']}"
            for item in error.errors()
        ]
        raise CannotStart("; ".join(wrong)) from error
    except SettingsError as error:
        raise CannotStart(f'{error}; lists are written as JSON, such as \'["a", "b"]\'') from error
    except RuntimeError as error:
        raise CannotStart(f"GRAFTLAB_DATA_DIR: {error}; write the absolute path") from error


def settings_of_part() -> Settings:
    """Return the settings of a process of the lab; if a check fails, log one line and exit with code 1."""
    try:
        settings = checked_settings()
        check_storage(settings)
        check_database(settings, alone=False)
    except CannotStart as error:
        log.critical("cannot start: %s", error)
        sys.exit(1)
    return settings


def check_packages(python: str) -> None:
    """Raises CannotStart if this interpreter lacks packages that the lab's parts import."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        which = f"{python} has no {', '.join(missing)}"
        raise CannotStart(f"{which}; `{python} -m pip install graftlab` installs them, or use another Python")


def check_storage(settings: Settings) -> None:
    """Raises CannotStart if the storage cannot be reached; a test file is written to a local one."""
    where = f"GRAFTLAB_STORAGE={settings.storage}"
    try:
        storage = Storage(settings.storage)
    except ImportError as error:
        package = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}
        name = package.get(settings.storage.partition("://")[0], "its package")
        raise CannotStart(f"{where}: {error}; install {name}, or name a folder") from error
    except ValueError as error:
        raise CannotStart(
            f"{where}: {error}; name a folder, or an address such as s3://bucket/lab"
        ) from error
    try:
        if storage.is_local:
            storage.write_bytes("ready", b"starting")
    except OSError as error:
        why = f"{error.strerror} ({error.filename})"
        raise CannotStart(f"{where}: {why}; name a folder that this user can write to") from error


def check_database(settings: Settings, alone: bool = True) -> None:
    """Raises CannotStart if the database cannot be opened, or was written by a newer version of this program.

    `alone`: no other process of the lab uses it yet, so it can be locked and checked.
    """
    scheme, separator, rest = settings.database_url.partition("://")
    if not separator or scheme not in ("sqlite", "sqlite+pysqlite", POSTGRESQL):
        raise CannotStart(f"GRAFTLAB_DATABASE_URL begins with {scheme[:40]!r}; {URLS}")
    if scheme.startswith("sqlite"):
        return _check_sqlite(settings.database_url, alone)
    if not rest.strip("/"):
        raise CannotStart(f"GRAFTLAB_DATABASE_URL names no database; {URLS}")
    return _check_postgresql(settings.database_url)


def _check_sqlite(url: str, alone: bool) -> None:
    file = sqlite_file(url)
    if file is None or not file.exists():
        return
    remedy = "restore a copy of it, or use another data folder"
    try:
        with closing(sqlite3.connect(file, timeout=BUSY_SECONDS, isolation_level=None)) as database:
            revision = _revision(database)
            wrong = _damage(database, file) if alone else ""
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            remedy = f"another program holds it; end that (`fuser {file}` names it)"
        raise CannotStart(f"the database {file} cannot be opened: {error}; {remedy}") from error
    except sqlite3.DatabaseError as error:
        raise CannotStart(f"the database {file} is damaged ({error}); {remedy}") from error
    if wrong:
        raise CannotStart(f"the database {file} is damaged ({wrong}); {remedy}")
    _check_revision(revision, str(file))


def _damage(database: sqlite3.Connection, file: Path) -> str:
    """Return what SQLite finds wrong in its pages; the database is locked for writing meanwhile."""
    database.execute("BEGIN IMMEDIATE")
    if file.stat().st_size > CHECKED_BYTES:
        return ""
    (result,) = database.execute("PRAGMA quick_check(1)").fetchone()
    database.execute("ROLLBACK")
    return "" if result == "ok" else str(result)[:200]


def _revision(database: sqlite3.Connection) -> str | None:
    known = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'alembic_version'"
    if database.execute(known).fetchone() is None:
        return None
    row = database.execute("SELECT version_num FROM alembic_version").fetchone()
    return str(row[0]) if row else None


def _check_postgresql(url: str) -> None:
    from sqlalchemy import inspect, make_url, text  # noqa: PLC0415 - not needed by an embedded lab
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError  # noqa: PLC0415

    from service.db.engine import Database  # noqa: PLC0415

    try:
        shown = make_url(url).render_as_string(hide_password=True)
    except (ArgumentError, ValueError) as error:
        raise CannotStart(f"GRAFTLAB_DATABASE_URL cannot be read; {URLS}") from error
    try:
        database = Database(url)
        with database.engine.connect() as connection:
            migrated = inspect(connection).has_table("alembic_version")
            row = (
                connection.execute(text("SELECT version_num FROM alembic_version")).first()
                if migrated
                else None
            )
        database.engine.dispose()
    except SQLAlchemyError as error:
        why = " ".join(str(getattr(error, "orig", None) or error).split())[:300]
        raise CannotStart(f"the database {shown} cannot be reached: {why}") from error
    _check_revision(str(row[0]) if row else None, shown)


def _check_revision(revision: str | None, database: str) -> None:
    files = (Path(migrations.__file__).parent / "versions").glob("[0-9]*.py")
    known = sorted(file.name.partition("_")[0] for file in files)
    if revision is not None and revision not in known:
        newest = f"it is at revision {revision}, this version knows revisions up to {known[-1]}"
        raise CannotStart(
            f"{database} was written by a newer version of Graftlab ({newest}); install that one"
        )
