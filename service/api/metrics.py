"""Prometheus metrics: requests that the API answered, and figures read from the database at each scrape."""

import os
from collections.abc import Iterator

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.api.deps import AppContext, LabDep
from service.db.leases import LEASES, NOUNS
from service.db.tables import AccountRow, AttemptRow, LeaderRow, RunRow
from service.domain.budgets import LAB

router = APIRouter(tags=["health"])
PROCESS = CollectorRegistry()
REQUESTS = Counter("graftlab_requests", "Requests answered", ["method", "status"], registry=PROCESS)
SECONDS = Histogram("graftlab_request_seconds", "Time to the end of an answer", ["method"], registry=PROCESS)


def note_request(method: str, status: int, seconds: float) -> None:
    """Count an answered request. Methods unknown to HTTP are counted together."""
    known = method if method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS") else "other"
    REQUESTS.labels(known, str(status)).inc()
    SECONDS.labels(known).observe(seconds)


class Store(Collector):
    """Collector of the database's figures; a scrape takes a few short queries."""

    def __init__(self, lab: AppContext) -> None:
        self._lab = lab

    def collect(self) -> Iterator[GaugeMetricFamily]:
        with self._lab.database.reading() as session:
            states = GaugeMetricFamily("graftlab_runs", "Runs by state", labels=["state"])
            for state, count in session.execute(select(RunRow.state, func.count()).group_by(RunRow.state)):
                states.add_metric([state], count)
            yield states
            for name, (text, value) in _figures(session, self._lab).items():
                yield GaugeMetricFamily(name, text, value=value)


def _figures(session: Session, lab: AppContext) -> dict[str, tuple[str, float]]:
    live = select(func.count()).select_from(AttemptRow).where(AttemptRow.ended_at.is_(None))
    open_ones = select(func.coalesce(func.sum(AttemptRow.device_seconds), 0.0))
    lab_account = session.get(AccountRow, LAB)
    spent = (lab_account.device_seconds if lab_account else 0.0) + float(
        session.scalar(open_ones.where(AttemptRow.ended_at.is_(None))) or 0
    )
    behind = select(func.coalesce(func.sum(RunRow.last_event - RunRow.mlflow_event), 0)).where(
        RunRow.last_event > RunRow.mlflow_event
    )
    clock = lab.database.clock(session)
    leads = {
        f"graftlab_{name}_leads": (
            f"1 while a {NOUNS[name]} leads",
            float((row := session.get(LeaderRow, number)) is not None and row.until > clock),
        )
        for name, number in LEASES.items()
    }
    return {
        "graftlab_live_attempts": ("Attempts that have not ended", float(session.scalar(live) or 0)),
        "graftlab_device_seconds": ("Device-seconds of all attempts", spent),
        "graftlab_tracking_behind": ("Events not yet sent to MLflow", float(session.scalar(behind) or 0)),
        **leads,
    }


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def read_metrics(lab: LabDep) -> Response:
    """Return the metrics in Prometheus' text format.

    Scrape with a viewer's key as bearer token.
    """
    store = CollectorRegistry()
    store.register(Store(lab))
    return Response(generate_latest(_answers()) + generate_latest(store), media_type=CONTENT_TYPE_LATEST)


def _answers() -> CollectorRegistry:
    """Return the registry of all API processes together, or of this one if it is the only one."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return PROCESS
    together = CollectorRegistry()
    MultiProcessCollector(together)  # type: ignore[no-untyped-call]  # the library has no types here
    return together
