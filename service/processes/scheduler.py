"""The scheduler as a process: `python -m service.processes.scheduler`."""

import logging
import signal
import threading

from grafting_core.storage.storage import Storage
from service.control import ClusterControl
from service.db.engine import Database
from service.db.leader_lease import Leadership, LostLeadership
from service.db.migrate import upgrade
from service.logging import setup_logging
from service.scheduler.checkpoint_cleanup import clean_up_checkpoints
from service.scheduler.loop import Scheduler
from service.scheduler.ray_jobs import RayJobs
from service.scheduler.registry_cleanup import clean_up_registry
from service.scheduler.wakeup import ChangeNotifier
from service.startup import settings_of_part
from service.webhooks.delivery import LAST_SECONDS, send_webhooks

log = logging.getLogger("graftlab.scheduler")


def main() -> None:
    """Run rounds until SIGTERM or SIGINT; running attempts continue without the scheduler."""
    setup_logging()
    settings = settings_of_part()
    database = Database(settings.database_url)
    upgrade(database)
    lease = Leadership(database, settings.lead_seconds, "scheduler")
    control = ClusterControl(settings, database, Storage(settings.storage), lease, RayJobs(settings))
    scheduler = Scheduler(control)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    clean_up_checkpoints(control, ended)
    clean_up_registry(control, ended)
    webhooks = send_webhooks(settings, database, ended) if settings.webhook_hosts else None
    news = ChangeNotifier(database)
    while not news.await_news(ended, settings.round_seconds):
        news.begin()
        _round(scheduler)
    lease.release()
    if webhooks is not None:
        webhooks.join(LAST_SECONDS + 1)


def _round(scheduler: Scheduler) -> None:
    """Run one round; an exception ends the round but not the process: the next one starts from the current
    state.
    """
    try:
        scheduler.round()
    except LostLeadership as error:
        log.warning("%s", error)
    except Exception:
        log.exception("this round failed; the next one starts from the current state")


if __name__ == "__main__":
    main()
