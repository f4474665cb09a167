"""Warm worker groups, which have finished a ticket and wait for another: find, assign, retire."""

import logging

from pydantic import ConfigDict

from grafting_core.storage.storage import Storage
from service.cluster import FINISHED, Cluster
from service.log_once import Once, brief
from workers.contract import (
    DRIVER_ONLY_KINDS,
    IDLE_FOLDER,
    Assignment,
    RunTicket,
    WarmWorker,
    attempt_of,
    handover_path,
    host_shape,
    idle_path,
    retire_path,
)

log = logging.getLogger("graftlab.scheduler")


class _Note(WarmWorker):
    """A worker's note as read: a newer worker may write more fields."""

    model_config = ConfigDict(extra="ignore")


class WarmWorkerPool:
    """Idle workers according to storage. A decision is recorded in SQL before the worker is informed."""

    def __init__(self, storage: Storage, cluster: Cluster) -> None:
        self._storage, self._cluster = storage, cluster
        self._say = Once(log)

    def idle(self) -> list[WarmWorker]:
        """Return idle workers that have no new ticket yet. An unreadable note is logged once."""
        hosts = [host for name in self._storage.names(IDLE_FOLDER) if (host := self._read(name)) is not None]
        return [
            host for host in hosts if not self._storage.exists(handover_path(host.job, host.ticket_index + 1))
        ]

    def _read(self, name: str) -> WarmWorker | None:
        path = f"{IDLE_FOLDER}/{name}"
        try:
            note = self._storage.read_model(path, _Note)
        except FileNotFoundError:
            return None  # it has started a ticket, or exited, since the listing
        except (ValueError, IsADirectoryError) as error:
            self._say(path, f"{path} cannot be read and is skipped: {brief(error)}")
            return None
        if idle_path(note.job) != path or attempt_of(note.job) is None:
            self._say(path, f"{path} names the job {note.job!r:.100}, which is another's; it is skipped")
            return None
        return note

    def find(self, ticket: RunTicket) -> WarmWorker | None:
        """Return a living worker of the ticket's shape. Raises ClusterUnavailable."""
        if ticket.work.kind in DRIVER_ONLY_KINDS:
            return None
        shape = host_shape(ticket.work)
        return next((host for host in self.idle() if host.shape == shape and self._lives(host)), None)

    def _lives(self, host: WarmWorker) -> bool:
        status = self._cluster.status(host.job)
        if status is not None and status not in FINISHED:
            return True
        self._storage.delete(idle_path(host.job))  # killed while it waited
        return False

    def hand_over(self, job: str, ticket_index: int, ticket: RunTicket) -> None:
        """Assign this ticket to a worker; repeating it changes nothing."""
        handover = Assignment(run_id=ticket.run_id, attempt=ticket.attempt)
        self._storage.write_model(handover_path(job, ticket_index), handover)

    def make_room(self, free_cpus: int, free_gpus: int) -> None:
        """Retire idle workers until the free CPUs and GPUs are not used by any."""
        idle = self.idle()
        while idle and (sum(h.cpus for h in idle) > free_cpus or sum(h.gpus for h in idle) > free_gpus):
            self._storage.write_bytes(retire_path(idle.pop(0).job), b"")
