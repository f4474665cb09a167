"""Worker groups that have done their ticket and wait for another: found, given one, or sent away."""

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
    """As it is read: a newer worker may say more than we know of."""

    model_config = ConfigDict(extra="ignore")


class WarmWorkerPool:
    """What storage says of them. A decision is in SQL before the worker is told."""

    def __init__(self, storage: Storage, cluster: Cluster) -> None:
        self._storage, self._cluster = storage, cluster
        self._say = Once(log)

    def idle(self) -> list[WarmWorker]:
        """Those that wait and have not been given a ticket yet. A note that cannot be read is named once."""
        found = [host for name in self._storage.names(IDLE_FOLDER) if (host := self._read(name)) is not None]
        return [host for host in found if not self._storage.exists(handover_path(host.job, host.turn + 1))]

    def _read(self, name: str) -> WarmWorker | None:
        path = f"{IDLE_FOLDER}/{name}"
        try:
            note = self._storage.read_model(path, _Note)
        except FileNotFoundError:
            return None  # it has gone to work, or home, since we looked
        except (ValueError, IsADirectoryError) as error:
            self._say(path, f"{path} cannot be read and is passed over: {brief(error)}")
            return None
        if idle_path(note.job) != path or attempt_of(note.job) is None:
            self._say(
                path, f"{path} names the job {note.job!r:.100}, which is not its own; it is passed over"
            )
            return None
        return note

    def find(self, ticket: RunTicket) -> WarmWorker | None:
        """A living host of the ticket's shape. Raises ClusterUnavailable."""
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

    def hand_over(self, job: str, turn: int, ticket: RunTicket) -> None:
        """Let a host carry this ticket out; repeating it changes nothing."""
        handover = Assignment(run_id=ticket.run_id, attempt=ticket.attempt)
        self._storage.write_model(handover_path(job, turn), handover)

    def make_room(self, free_cpus: int, free_gpus: int) -> None:
        """Send idle hosts home until what is free beside them is really free."""
        idle = self.idle()
        while idle and (sum(h.cpus for h in idle) > free_cpus or sum(h.gpus for h in idle) > free_gpus):
            self._storage.write_bytes(retire_path(idle.pop(0).job), b"")
