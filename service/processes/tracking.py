"""The forwarder as a process: `python -m service.processes.tracking`."""

import logging
import os
import re
import signal
import threading

from grafting_core.storage.storage import Storage
from service.db.engine import Database
from service.db.migrate import upgrade
from service.logging import setup_logging
from service.startup import settings_of_part
from service.tracking.runs import Forwarder
from service.tracking.target import Away, plain

log = logging.getLogger("graftlab.tracking")
LONGEST_WAIT = 60.0


def main() -> None:
    """Forward until SIGTERM or SIGINT; while MLflow is unavailable, wait longer each time. Nothing is
    lost.
    """
    setup_logging()
    # Our own waiting is the retry; MLflow's retries would block for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    settings = settings_of_part()
    database = Database(settings.database_url)
    upgrade(database)
    rounds = Rounds(Forwarder(settings, database, Storage(settings.storage)), settings.round_seconds)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    while not ended.wait(rounds.wait):
        rounds.next()


class Rounds:
    """Runs rounds and logs what prevents them once, when it begins and when it is over."""

    def __init__(self, forwarder: Forwarder, seconds: float) -> None:
        self._forwarder, self._seconds = forwarder, seconds
        self._hindered = ""
        self.wait = seconds
        """Seconds until the next round is due."""

    def next(self) -> bool:
        """Run a round; return whether it was completed."""
        try:
            more = self._forwarder.round()
        except Exception as error:  # noqa: BLE001 - no error ends the forwarder; what was not sent is sent later
            self.wait = min(LONGEST_WAIT, max(self._seconds, self.wait) * 2)
            self._hinder(plain(str(error) if isinstance(error, Away) else error))
            return False
        self.wait = 0.0 if more else self._seconds
        self._hinder("")
        return True

    def _hinder(self, reason: str) -> None:
        same = re.sub("0x[0-9a-f]+|[0-9]+", "", reason)  # addresses of objects and counts of retries differ
        if same != self._hindered:
            if reason:
                log.warning("MLflow is behind and will be updated later: %s", reason)
            else:
                log.info("MLflow can be updated again")
        self._hindered = same


if __name__ == "__main__":
    main()
