"""What a leading scheduler does beside its rounds, on threads of its own, so that it delays no run."""

import logging
import threading
from collections.abc import Callable

from service.scheduler.loop import Scheduler

log = logging.getLogger("graftlab.scheduler")


def beside(
    scheduler: Scheduler, ended: threading.Event, name: str, seconds: float, step: Callable[[], object]
) -> threading.Thread:
    """A thread that takes a step every so many seconds, as long as this scheduler leads.

    A step that fails is logged; the next one starts from what is.
    """

    def work() -> None:
        while not ended.wait(seconds):
            try:
                if scheduler.leads():
                    step()
            except Exception:
                log.exception("a step of the %s failed; the next one starts from what is", name)

    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    return thread
