"""Heartbeat thread of an attempt, and a watch for nodes that the cluster is about to lose.

Clouds announce the end of a spot instance some seconds ahead, and Ray then drains its node. Every process of
a group checks its own node; it writes a stop file, which stops the whole group.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import ray

from grafting_core.storage.failpoints import failpoint
from grafting_core.storage.storage import Storage
from workers.contract import Heartbeat, RunTicket, Stop, attempt_folder

log = logging.getLogger(__name__)
LOOK_SECONDS = 2.0
"""Interval of the checks; announcements come at least half a minute ahead."""
SELF_STOP_SHARE = 2 / 3
"""Share of `silence_seconds`: the worker must have ended before its attempt is replaced."""


def kill_self() -> None:
    """Kill this process at once with SIGKILL; the driver's death ends its worker group."""
    os.kill(os.getpid(), signal.SIGKILL)


class HeartbeatThread(threading.Thread):
    """Rewrites the attempt's heartbeat file until stopped.

    A second thread ends the process if no heartbeat was written for too long by the monotonic clock: a write
    may fail or hang, or the whole process may have been frozen and resumed.
    """

    def __init__(self, storage: Storage, ticket: RunTicket, give_up: Callable[[], None] = kill_self) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._storage, self._seconds, self._give_up = storage, ticket.heartbeat_seconds, give_up
        self._patience = ticket.silence_seconds * SELF_STOP_SHARE
        self._path = f"{attempt_folder(ticket.run_id, ticket.attempt)}/heartbeat"
        self._stopped = threading.Event()
        self._shown = time.monotonic()
        self._watchdog = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        self._shown = time.monotonic()
        super().start()
        self._watchdog.start()

    def run(self) -> None:
        beat = 0
        while not self._stopped.is_set():
            beat += 1
            began = time.monotonic()
            if self._show(beat):
                # Count from before the write: the process may have been frozen during it.
                self._shown = began
            self._stopped.wait(self._seconds)

    def _watch(self) -> None:
        while not self._stopped.wait(min(1.0, self._patience / 10)):
            if time.monotonic() - self._shown > self._patience:
                return self._give_up()

    def _show(self, beat: int) -> bool:
        try:
            failpoint("heartbeat")
            self._storage.write_model(self._path, Heartbeat(beat=beat, pid=os.getpid()))
        except OSError:
            return False
        return True

    def stop(self) -> None:
        """Stop both threads and wait for them."""
        self._stopped.set()
        self.join()
        self._watchdog.join()


class DrainWatch(threading.Thread):
    """Thread that checks until the process ends; `ticket` is the ticket that the process is running."""

    def __init__(self, storage: Storage, ticket: RunTicket, drains: Callable[[], bool]) -> None:
        super().__init__(name="drain watch", daemon=True)
        self._storage, self._drains = storage, drains
        self.ticket = ticket

    def run(self) -> None:
        while True:
            with suppress(ray.exceptions.RayError, OSError):  # checked again in two seconds
                if self._drains():
                    self._request_stop(self.ticket)
            time.sleep(LOOK_SECONDS)

    def _request_stop(self, ticket: RunTicket) -> None:
        """Write a stop file for pre-emption, unless there is a stop file with another reason."""
        path = f"{attempt_folder(ticket.run_id, ticket.attempt)}/stop"
        if not self._storage.exists(path):
            self._storage.write_model(path, Stop(reason="preempted"))
            log.info("this node is being drained: attempt %s stops at its next checkpoint", ticket.attempt)


def own_node_drains() -> bool:
    """Whether the cluster is about to lose the node of this process. Raises RayError."""
    return ray.get_runtime_context().get_node_id() in ray._private.state.state.get_draining_nodes()
