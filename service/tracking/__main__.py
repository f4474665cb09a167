"""The forwarder as a process: `python -m service.tracking`."""

import logging
import os
import signal
import threading

from mlflow.exceptions import MlflowException
from requests.exceptions import RequestException
from sqlalchemy.exc import SQLAlchemyError

from grafting_core.storage import Storage
from service import logs
from service.starting import settings_of_part
from service.store.engine import Database
from service.store.migrate import upgrade
from service.tracking.forwarder import Forwarder

log = logging.getLogger("graftlab.tracking")
LONGEST_WAIT = 60.0


def main() -> None:
    """Forward until SIGTERM or SIGINT; while MLflow is away, wait longer and longer. Nothing is lost."""
    logs.setup()
    # Our own waiting is the retry; MLflow's would block for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    settings = settings_of_part()
    database = Database(settings.database_url)
    upgrade(database)
    forwarder = Forwarder(settings, database, Storage(settings.storage))
    ended = threading.Event()
    for wanted in (signal.SIGTERM, signal.SIGINT):
        signal.signal(wanted, lambda *_: ended.set())
    wait = settings.round_seconds
    while not ended.wait(wait):
        wait = settings.round_seconds if _round(forwarder) else min(LONGEST_WAIT, wait * 2)


def _round(forwarder: Forwarder) -> bool:
    try:
        forwarder.round()
    except (MlflowException, RequestException, SQLAlchemyError, OSError) as error:
        log.warning("MLflow is behind: %s", str(error)[:300])
        return False
    return True


if __name__ == "__main__":
    main()
