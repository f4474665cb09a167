"""The process that drives studies: `python -m service.processes.studies`.

It makes proposals, submits runs through the database and records their results. It loads torch only for a
study whose sampler, the Gaussian process, needs it.
"""

import logging
import os
import signal
import threading

from grafting_core.storage.storage import Storage
from service.control import Control
from service.db.engine import Database
from service.db.leader_lease import Leadership
from service.db.migrate import upgrade
from service.logging import setup_logging
from service.startup import settings_of_part
from service.studies.driver import Driver
from service.studies.threads import StepHangs, StepThreads

log = logging.getLogger("graftlab.search")
LAST_SECONDS = 3.0
"""Time for running steps to finish when the process ends; steps that do not finish are repeated later."""


def main() -> None:
    """Start steps until SIGTERM or SIGINT; of several such processes one leads and the others wait."""
    setup_logging()
    settings = settings_of_part()
    database = Database(settings.database_url)
    upgrade(database)
    lease = Leadership(database, settings.lead_seconds, "studies")
    control = Control(settings, database, Storage(settings.storage), lease)
    steps = StepThreads(Driver(control), settings.study_step_seconds)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    while not ended.wait(settings.round_seconds):
        _round(lease, steps)
    steps.wait(LAST_SECONDS)
    lease.release()


def _round(lease: Leadership, steps: StepThreads) -> None:
    """Renew the lease and start steps. A hung step ends the process, which its supervisor restarts."""
    try:
        if lease.claim():
            steps.round()
    except StepHangs as error:
        log.critical("%s; this process ends, as a hung thread cannot be stopped otherwise", error)
        lease.release()
        logging.shutdown()
        os._exit(1)
    except Exception:
        log.exception("this round failed; the next one starts from the current state")


if __name__ == "__main__":
    main()
