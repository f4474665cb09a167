"""Database access for SQLite and PostgreSQL."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, create_engine, event, make_url, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DatabaseError, DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker

from grafting_core.storage.failpoints import failpoint
from service.settings import sqlite_file

BUSY_SECONDS = 30.0
"""Time for which a writer waits for another on SQLite."""

SQLITE_PRAGMAS = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    "PRAGMA foreign_keys=ON",
)

CONNECT_SECONDS = 10
"""Time limit for connecting to PostgreSQL; without it an unreachable host blocks for minutes."""
POSTGRESQL_LIMITS = {"statement_timeout": "60s", "idle_in_transaction_session_timeout": "20s"}
"""Limits that end the transactions of a frozen process, which would hold its locks forever."""


class Database:
    """Engine and transactions. `reading()` never blocks writers; `writing()` takes the write lock at once."""

    def __init__(self, url: str, connections: int = 10) -> None:
        """Connect; up to `connections` to PostgreSQL are kept open, and as many more are opened under
        load.
        """
        self.url = url
        self.engine = _engine(url, connections)
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """Open a transaction: committed at the end, rolled back by any exception."""
        with self._sessions() as session:
            # A deferred transaction that upgrades to a write fails at once, whatever the busy timeout.
            session.connection(execution_options={"begin": "IMMEDIATE"})
            yield session
            failpoint("commit/before")
            session.commit()
            failpoint("commit/after")

    @contextmanager
    def reading(self) -> Iterator[Session]:
        with self._sessions() as session:
            yield session

    def take_time(self, session: Session) -> None:
        """Disable the limit on a statement's duration in this transaction, which reads a whole table."""
        if self.engine.dialect.name == "postgresql":
            session.execute(text("SET LOCAL statement_timeout = 0"))

    def clock(self, session: Session) -> float:
        """Return the seconds since 1970 by the database's own clock."""
        if self.engine.dialect.name == "sqlite":
            query = "SELECT (julianday('now') - 2440587.5) * 86400.0"
        else:
            query = "SELECT extract(epoch FROM clock_timestamp())"
        return float(session.execute(text(query)).scalar_one())


def is_away(error: SQLAlchemyError) -> bool:
    """Check whether the error means that the database is unavailable, rather than a wrong query."""
    if isinstance(error, OperationalError | InterfaceError | PoolTimeout):
        return True
    # SQLite raises this for a file that is damaged or not a database.
    lost = isinstance(error, DBAPIError) and error.connection_invalidated
    return lost or type(error) is DatabaseError


def insert_if_absent(session: Session, table: type[DeclarativeBase], **values: Any) -> None:
    """Insert a row unless its primary key exists; the database decides races."""
    insert = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    session.execute(insert(table).values(**values).on_conflict_do_nothing())


def _engine(url: str, connections: int) -> Engine:
    if make_url(url).get_backend_name() != "sqlite":
        options = " ".join(f"-c {name}={value}" for name, value in POSTGRESQL_LIMITS.items())
        arguments = {"options": options, "connect_timeout": CONNECT_SECONDS}
        return create_engine(
            url,
            pool_pre_ping=True,
            pool_size=connections,
            max_overflow=connections,
            connect_args=arguments,
        )
    path = sqlite_file(url)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, record: object) -> None:
    connection.isolation_level = None  # transactions begin explicitly, not where the driver guesses
    for pragma in SQLITE_PRAGMAS:
        _patiently(connection, pragma)


def _patiently(connection: Any, pragma: str) -> None:
    """Retry a pragma: the busy timeout does not cover the switch to WAL, which starting processes all try."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute(pragma)
            return
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _begin_sqlite(connection: Any) -> None:
    connection.exec_driver_sql(f"BEGIN {connection.get_execution_options().get('begin', 'DEFERRED')}")
