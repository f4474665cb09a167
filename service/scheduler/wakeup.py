"""The wait between two rounds, ended early by recorded changes."""

import threading
import time

from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from service.db.engine import Database
from service.db.tables import EventRow

LOOK_SECONDS = 0.1
"""Time between two look-ups of the newest event; each reads the end of an index."""
REST_SHARE = 4.0
"""Factor of the shortest wait: after a round, pause at least this many times its duration."""


class ChangeNotifier:
    """Detects whether any process recorded an event since the round began."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._began, self._seen = time.monotonic(), 0

    def begin(self) -> None:
        """Mark the beginning of a round: events recorded from now on count as changes."""
        self._began, self._seen = time.monotonic(), self._newest()

    def await_news(self, ended: threading.Event, seconds: float) -> bool:
        """Wait for a change, at most `seconds`; True if the process should end."""
        took = time.monotonic() - self._began
        end = time.monotonic() + seconds
        wait = min(seconds, max(LOOK_SECONDS, REST_SHARE * took))
        while not ended.wait(wait):
            wait = min(LOOK_SECONDS, end - time.monotonic())
            if wait <= 0 or self._newest() != self._seen:
                return False
        return True

    def _newest(self) -> int:
        """Return the newest event's id; the last one seen if the database does not answer, as the round will
        report.
        """
        try:
            with self._database.reading() as session:
                return session.scalar(select(func.max(EventRow.id))) or 0
        except SQLAlchemyError:
            return self._seen
