"""Schedulers and study drivers over a test's own database, storage and cluster."""

from grafting_core.storage.storage import Storage
from service.cluster import Cluster
from service.control import ClusterControl, Control
from service.db.engine import Database
from service.db.leader_lease import Leadership
from service.scheduler.loop import Scheduler
from service.settings import Settings


def new_scheduler(settings: Settings, database: Database, cluster: Cluster) -> Scheduler:
    """Make a scheduler that has not claimed its lease yet."""
    lease = Leadership(database, settings.lead_seconds, "scheduler")
    return Scheduler(ClusterControl(settings, database, Storage(settings.storage), lease, cluster))


def studies_control(settings: Settings, database: Database) -> Control:
    """Make the control of a process that drives studies; its lease lasts an hour."""
    lease = Leadership(database, 3600.0, "studies")
    assert lease.claim()
    return Control(settings, database, Storage(settings.storage), lease)
