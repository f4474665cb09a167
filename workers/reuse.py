"""A worker group that outlives its ticket: what the driver and its workers say to each other in between.

Starting a process that has torch, the cluster and a backbone in it takes longer than many a short run. So a
group that has done its ticket waits a while, says so in storage, and takes the next ticket of the same shape
when the scheduler hands one over. Each ticket has its own attempt number, heartbeat, events and log.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator

from grafting_core.storage.storage import Storage
from workers.contract import (
    Assignment,
    RunTicket,
    WarmWorker,
    begin_path,
    done_path,
    handover_path,
    host_shape,
    idle_path,
    retire_path,
    submission_id,
    ticket_path,
)

log = logging.getLogger(__name__)
POLL_SECONDS = 0.2
DRIVER_SECONDS = 60.0
"""A worker whose driver is silent for this long beyond its patience ends by itself."""
Begin = Callable[[RunTicket], Callable[[], None]]
"""Makes an attempt visible (log, heartbeat, first event); what it returns ends that."""


class WarmGroup:
    """The driver's side: one ticket after the other, on a thread beside the one that keeps the group."""

    def __init__(self, storage: Storage, first: RunTicket, begin: Begin) -> None:
        self._storage, self._begin = storage, begin
        self._job = submission_id(first.run_id, first.attempt)
        self._ticket_index = 1
        self._over = threading.Event()
        self.ticket: RunTicket | None = first
        """What the group is at; None between two tickets."""
        self.began = time.monotonic()
        self._end_ticket = begin(first)

    def start(self) -> None:
        threading.Thread(target=self._switch, name="host", daemon=True).start()

    def close(self) -> None:
        """The group has ended, for whatever reason."""
        self._over.set()
        if self.ticket is not None:
            self._end_ticket()
        self._storage.delete(idle_path(self._job))
        for name in self._storage.names(f"hosts/{self._job}"):
            self._storage.delete(f"hosts/{self._job}/{name}")

    def _switch(self) -> None:
        while self._wait_for(lambda: self._storage.exists(done_path(self._job, self._ticket_index))):
            done, self.ticket = self.ticket, None
            self._end_ticket()
            assert done is not None
            handover = self._wait_for_next(done)
            self._ticket_index += 1
            if handover.run_id is not None:
                self.ticket = self._storage.read_model(
                    ticket_path(handover.run_id, handover.attempt), RunTicket
                )
                self.began = time.monotonic()
                self._end_ticket = self._begin(self.ticket)
            self._storage.write_model(begin_path(self._job, self._ticket_index), handover)
            if handover.run_id is None:
                return

    def _wait_for_next(self, done: RunTicket) -> Assignment:
        resources = done.work.resources
        idle = WarmWorker(
            job=self._job,
            ticket_index=self._ticket_index,
            shape=host_shape(done.work),
            cpus=resources.workers * resources.cpus_per_worker,
            gpus=resources.workers * resources.gpus_per_worker,
        )
        asked = handover_path(self._job, self._ticket_index + 1)
        self._storage.write_model(idle_path(self._job), idle)
        retire, end = retire_path(self._job), time.monotonic() + done.warm_seconds
        self._wait_for(
            lambda: self._storage.exists(asked) or self._storage.exists(retire) or time.monotonic() > end
        )
        self._storage.delete(idle_path(self._job))
        # Looked at once more after the note is gone: a ticket handed over at the last moment is taken.
        return self._storage.read_model(asked, Assignment) if self._storage.exists(asked) else Assignment()

    def _wait_for(self, so: Callable[[], bool]) -> bool:
        """False where the group has ended meanwhile."""
        while not self._over.is_set():
            if so():
                return True
            self._over.wait(POLL_SECONDS)
        return False


def receive_tickets(storage: Storage, first: RunTicket, leads: bool) -> Iterator[RunTicket]:
    """A worker's side: the first ticket, then those that follow it while the driver keeps the group."""
    job, ticket_index, ticket = submission_id(first.run_id, first.attempt), 1, first
    while True:
        yield ticket
        if not ticket.warm_seconds:
            return
        if leads:
            storage.write_bytes(done_path(job, ticket_index), b"")
        ticket_index += 1
        handover = _next_assignment(
            storage, begin_path(job, ticket_index), ticket.warm_seconds + DRIVER_SECONDS
        )
        if handover.run_id is None:
            return
        ticket = storage.read_model(ticket_path(handover.run_id, handover.attempt), RunTicket)


def _next_assignment(storage: Storage, path: str, seconds: float) -> Assignment:
    end = time.monotonic() + seconds
    while not storage.exists(path):
        if time.monotonic() > end:
            return Assignment()
        time.sleep(POLL_SECONDS)
    return storage.read_model(path, Assignment)
