"""Dependencies of a leading process, and periodic jobs that run only while it leads."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy.orm import Session

from grafting_core.storage.storage import Storage
from service.cluster import Cluster
from service.db.engine import Database
from service.db.leader_lease import Leadership, leading
from service.settings import Settings

log = logging.getLogger("graftlab.control")


@dataclass(frozen=True)
class Control:
    """Settings, database, storage, and the lease that one process at a time holds."""

    settings: Settings
    database: Database
    storage: Storage
    lease: Leadership

    def leads(self) -> bool:
        """Check whether this process holds its lease now."""
        with self.database.reading() as session:
            return self.lease.holds(session)

    @contextmanager
    def leading(self) -> Iterator[Session]:
        """Open a write transaction that only the holder of the lease can commit. Raises LostLeadership."""
        with leading(self.database, self.lease) as session:
            yield session


@dataclass(frozen=True)
class ClusterControl(Control):
    """Control of the scheduler, the only process that talks to the cluster."""

    cluster: Cluster


def run_periodically(
    control: Control, ended: threading.Event, name: str, seconds: float, step: Callable[[], object]
) -> threading.Thread:
    """Start a daemon thread that calls `step` every `seconds` while this process leads, until `ended` is set.

    A step that fails is logged, and the next one is called all the same.
    """

    def work() -> None:
        while not ended.wait(seconds):
            try:
                if control.leads():
                    step()
            except Exception:
                log.exception("a step of the %s failed; the next one starts from the current state", name)

    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    return thread
