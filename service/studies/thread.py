"""Studies are driven beside the scheduler's rounds, so that a slow proposal delays no run."""

import threading

from service.scheduler.loop import Scheduler
from service.scheduler.periodic import beside
from service.studies.driver import Driver


def drive_studies(scheduler: Scheduler, ended: threading.Event) -> threading.Thread:
    """A thread that takes a step of every study each round, as long as this scheduler leads."""
    driver = Driver(scheduler.settings, scheduler.database, scheduler.storage)
    return beside(scheduler, ended, "studies", scheduler.settings.round_seconds, driver.round)
