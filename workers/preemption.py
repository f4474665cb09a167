"""A node that is about to be taken away: what runs on it stops at its next checkpoint and goes on elsewhere.

Clouds announce the end of a spot instance some seconds ahead, and Ray then drains its node. Every process of
a group looks whether its own node is meant; a stop file tells the whole group.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import ray

from grafting_core.storage.storage import Storage
from workers.contract import RunTicket, Stop, attempt_folder

log = logging.getLogger(__name__)
LOOK_SECONDS = 2.0
"""Announcements are made half a minute ahead at the least."""


class DrainWatch(threading.Thread):
    """Looks until the process ends; `ticket` is what the process is at."""

    def __init__(self, storage: Storage, ticket: RunTicket, drains: Callable[[], bool]) -> None:
        super().__init__(name="drain watch", daemon=True)
        self._storage, self._drains = storage, drains
        self.ticket = ticket

    def run(self) -> None:
        while True:
            with suppress(ray.exceptions.RayError, OSError):  # looked at again in a moment
                if self._drains():
                    self._bid_stop(self.ticket)
            time.sleep(LOOK_SECONDS)

    def _bid_stop(self, ticket: RunTicket) -> None:
        """Unless somebody wants it stopped already, for a reason of his own."""
        path = f"{attempt_folder(ticket.run_id, ticket.attempt)}/stop"
        if not self._storage.exists(path):
            self._storage.write_model(path, Stop(reason="preempted"))
            log.info("this node is being drained: attempt %s stops at its next checkpoint", ticket.attempt)


def own_node_drains() -> bool:
    """Whether the cluster is about to lose the node of this process. Raises RayError."""
    return ray.get_runtime_context().get_node_id() in ray._private.state.state.get_draining_nodes()
