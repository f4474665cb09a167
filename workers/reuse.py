"""Reuse a running worker group for the next ticket of the same shape.

Starting a process with torch, a cluster connection and a backbone takes longer than many short runs. So a
group that has finished its ticket writes a note to storage, waits a while, and takes the next ticket of the
same shape if the scheduler hands one over. Each ticket has its own attempt number, heartbeat, events and log.
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
"""A worker ends itself if its driver is silent for this long after the waiting time is over."""
Begin = Callable[[RunTicket], Callable[[], None]]
"""Starts the log, heartbeat and first event of an attempt; returns the function that ends them."""


class WarmGroup:
    """Driver side of reuse: watches for finished tickets and hands over the next ones, in its own thread."""

    def __init__(self, storage: Storage, first: RunTicket, begin: Begin) -> None:
        self._storage, self._begin = storage, begin
        self._job = submission_id(first.run_id, first.attempt)
        self._ticket_index = 1
        self._over = threading.Event()
        self.ticket: RunTicket | None = first
        """Ticket that the group is running; None between two tickets."""
        self.began = time.monotonic()
        self._end_ticket = begin(first)

    def start(self) -> None:
        threading.Thread(target=self._switch, name="host", daemon=True).start()

    def close(self) -> None:
        """Stop the attempt's heartbeat and delete the group's files; call this when the group has ended."""
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
        handover = handover_path(self._job, self._ticket_index + 1)
        self._storage.write_model(idle_path(self._job), idle)
        retire, end = retire_path(self._job), time.monotonic() + done.warm_seconds
        self._wait_for(
            lambda: self._storage.exists(handover) or self._storage.exists(retire) or time.monotonic() > end
        )
        self._storage.delete(idle_path(self._job))
        # Checked again after the note is deleted: a ticket handed over at the last moment is still taken.
        if not self._storage.exists(handover):
            return Assignment()
        return self._storage.read_model(handover, Assignment)

    def _wait_for(self, so: Callable[[], bool]) -> bool:
        """Poll until `so()` is true; False if the group has ended in the meantime."""
        while not self._over.is_set():
            if so():
                return True
            self._over.wait(POLL_SECONDS)
        return False


def receive_tickets(storage: Storage, first: RunTicket, leads: bool) -> Iterator[RunTicket]:
    """Worker side of reuse: yields the first ticket, then each next one until the driver ends the group."""
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
