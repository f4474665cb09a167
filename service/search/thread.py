"""Studies are driven beside the scheduler's rounds, so that a slow proposal delays no run."""

import logging
import threading

from sqlalchemy.exc import SQLAlchemyError

from service.scheduler.scheduler import Scheduler
from service.search.driver import Driver

log = logging.getLogger("graftlab.search")


def drive_studies(scheduler: Scheduler, ended: threading.Event) -> threading.Thread:
    """A thread that takes a step of every study each round, as long as this scheduler leads."""
    driver = Driver(scheduler.settings, scheduler.database, scheduler.storage)
    thread = threading.Thread(target=_drive, args=(scheduler, driver, ended), name="studies", daemon=True)
    thread.start()
    return thread


def _drive(scheduler: Scheduler, driver: Driver, ended: threading.Event) -> None:
    while not ended.wait(scheduler.settings.round_seconds):
        try:
            if scheduler.leads():
                driver.round()
        except (SQLAlchemyError, OSError):
            log.exception("this step of the studies failed; the next one starts from what is")
