"""The wait between two rounds, cut short by what is recorded meanwhile."""

import threading
import time

from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from service.db.engine import Database
from service.db.tables import EventRow

LOOK_SECONDS = 0.1
"""How often the newest event is looked for; one look reads the end of an index."""
REST_SHARE = 4.0
"""Between two rounds lies at least this many times what the last one took: news do not fill the day."""


class ChangeNotifier:
    """Whether anything was recorded, by us or by others, since a round began."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._began, self._seen = time.monotonic(), 0

    def begin(self) -> None:
        """A round begins: what is recorded from here on is news to it."""
        self._began, self._seen = time.monotonic(), self._newest()

    def await_news(self, ended: threading.Event, seconds: float) -> bool:
        """Wait for news, at most `seconds`; True where the process is to end."""
        took = time.monotonic() - self._began
        end = time.monotonic() + seconds
        wait = min(seconds, max(LOOK_SECONDS, REST_SHARE * took))
        while not ended.wait(wait):
            wait = min(LOOK_SECONDS, end - time.monotonic())
            if wait <= 0 or self._newest() != self._seen:
                return False
        return True

    def _newest(self) -> int:
        """A database that does not answer has no news; the round will say what is wrong with it."""
        try:
            with self._database.reading() as session:
                return session.scalar(select(func.max(EventRow.id))) or 0
        except SQLAlchemyError:
            return self._seen
