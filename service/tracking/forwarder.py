"""Runs as MLflow shows them: a projection of our events, repeatable from any point."""

import io
import json
import logging
import math
from collections.abc import Iterator
from typing import Any

from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from PIL import Image
from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from grafting_core.spec.experiment import ExperimentSpec
from grafting_core.storage import Storage
from service.api.schemas import TERMINAL, RunDetail, RunEvent
from service.settings import Settings
from service.store.engine import Database
from service.store.models import RunRow, TrackingRow
from service.store.queries import events_after, run_detail
from service.tracking.studies import StudyForwarder, parent_tags
from workers.contract import Progress, StageDone, StageReport

log = logging.getLogger("graftlab.tracking")
TAG = "graftlab.run_id"
ENDED = {"SUCCEEDED": "FINISHED", "STOPPED": "FINISHED", "FAILED": "FAILED", "CANCELLED": "KILLED"}
ABOUT_ONE_RUN = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE", "BAD_REQUEST")
BATCH = 900
"""MLflow takes at most 1,000 metrics a call."""


class Forwarder:
    """Projects every run from its cursor. Metrics repeat with equal step and time, so twice is once."""

    def __init__(self, settings: Settings, database: Database, storage: Storage) -> None:
        self.settings, self.database, self.storage = settings, database, storage
        self.client = MlflowClient(settings.mlflow_url)
        self.studies = StudyForwarder(settings, database, self.client)

    def round(self) -> None:
        """Bring MLflow up to date. Raises MlflowException or requests' errors while it is away."""
        # Studies first: a run is nested under its parent when it is made.
        self.studies.round()
        for run_id in self._behind():
            try:
                self._forward(run_id)
            except MlflowException as error:
                self._set_aside(run_id, error)

    def _set_aside(self, run_id: str, error: MlflowException) -> None:
        """A fault of one run keeps no other waiting. Where MLflow has lost the run, it is projected anew.

        Raises the error where it speaks of MLflow as a whole.
        """
        if error.error_code not in ABOUT_ONE_RUN:
            raise error
        log.warning("run %s cannot be projected: %s", run_id, " ".join(str(error).split())[:300])
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            with self.database.writing() as session:
                row = session.get(TrackingRow, run_id)
                if row is not None:
                    row.mlflow_run_id, row.last_seq, row.closed = None, 0, False

    def _behind(self) -> list[str]:
        query = (
            select(RunRow.id)
            .outerjoin(TrackingRow, TrackingRow.run_id == RunRow.id)
            .where(or_(TrackingRow.run_id.is_(None), RunRow.last_event > TrackingRow.last_seq))
            .order_by(RunRow.id)
        )
        with self.database.reading() as session:
            return list(session.scalars(query))

    def _forward(self, run_id: str) -> None:
        with self.database.reading() as session:
            detail = run_detail(session, run_id)
            cursor = session.get(TrackingRow, run_id)
            events = events_after(session, run_id, cursor.last_seq if cursor else 0)
        assert detail is not None
        tracked = cursor.mlflow_run_id if cursor and cursor.mlflow_run_id else self._find_or_create(detail)
        if cursor and cursor.closed and events:
            self.client.update_run(tracked, status="RUNNING")
        self._send(tracked, detail, events)
        with self.database.writing() as session:
            self._remember(session, run_id, tracked, events)

    def _find_or_create(self, detail: RunDetail) -> str:
        """The MLflow run tagged with our id, made where there is none: a lost answer makes no second one."""
        experiment = self.client.get_experiment_by_name(detail.backbone)
        experiment_id = (
            experiment.experiment_id if experiment else self.client.create_experiment(detail.backbone)
        )
        found = self.client.search_runs([experiment_id], f"tags.`{TAG}` = '{detail.id}'", max_results=1)
        started = int(detail.created_at.timestamp() * 1000)
        tags = {TAG: detail.id, **parent_tags(self.database, detail.id)}
        made = found[0] if found else self.client.create_run(experiment_id, started, tags, detail.name)
        # A predecessor may have been killed before this: equal values are taken twice.
        self.client.log_batch(made.info.run_id, params=_params(detail))
        self.client.log_text(made.info.run_id, detail.work.model_dump_json(indent=2), f"{detail.kind}.json")
        self._link(detail.id, experiment_id, made.info.run_id)
        return str(made.info.run_id)

    def _link(self, run_id: str, experiment_id: str, tracked: str) -> None:
        with self.database.writing() as session:
            url = f"{self.settings.mlflow_url}/#/experiments/{experiment_id}/runs/{tracked}"
            session.get_one(RunRow, run_id).mlflow_url = url

    def _send(self, tracked: str, detail: RunDetail, events: list[RunEvent]) -> None:
        metrics = [metric for event in events for metric in _metrics(event)]
        for start in range(0, len(metrics), BATCH):
            self.client.log_batch(tracked, metrics=metrics[start : start + BATCH])
        for event in events:
            self._send_artifacts(tracked, event)
        if events and events[-1].state in TERMINAL:
            self._close(tracked, detail)

    def _send_artifacts(self, tracked: str, event: RunEvent) -> None:
        body = event.event.body if event.event else None
        if isinstance(body, StageDone) and "samples.png" in body.report.artifacts:
            path = body.report.artifacts["samples.png"]
            if not self.storage.exists(path):
                return log.warning("%s is gone; MLflow does without", path)
            from_storage = self.storage.read_bytes(path)
            self.client.log_image(tracked, Image.open(io.BytesIO(from_storage)), artifact_file="samples.png")
        if isinstance(body, StageDone) and "report.json" in body.report.artifacts:
            report = self.storage.read_bytes(body.report.artifacts["report.json"]).decode()
            self.client.log_text(tracked, report, "report.json")

    def _close(self, tracked: str, detail: RunDetail) -> None:
        at = int((detail.ended_at or detail.created_at).timestamp() * 1000)
        spend = {f"spend.{name}": value for name, value in detail.spend.model_dump().items()}
        spend["spend.share_of_pretraining"] = detail.share_of_pretraining
        metrics = [Metric(name, float(value), at, 0) for name, value in spend.items()]
        self.client.log_batch(tracked, metrics=metrics, tags=[RunTag("graftlab.state", detail.state)])
        self.client.set_terminated(tracked, ENDED[detail.state], at)

    def _remember(self, session: Session, run_id: str, tracked: str, events: list[RunEvent]) -> None:
        row = session.get(TrackingRow, run_id) or TrackingRow(run_id=run_id, last_seq=0, closed=False)
        row.mlflow_run_id = tracked
        if events:
            row.last_seq = events[-1].id
            row.closed = events[-1].state in TERMINAL
        session.add(row)


def _params(detail: RunDetail) -> list[Param]:
    """What was asked for, flat; MLflow keeps up to 6,000 characters each."""
    flat = {"kind": detail.kind, "experiment_digest": detail.experiment_digest}
    if detail.kind == "graft":
        flat |= _graft_params(detail.experiment)
    return [Param(name, value[:6000]) for name, value in flat.items()]


def _graft_params(spec: ExperimentSpec) -> dict[str, str]:
    edits = ", ".join(f"{edit.site}: {_short(edit.operator.model_dump())}" for edit in spec.design.edits)
    flat = {"edits": edits or "none", "pairs": ", ".join(map(str, spec.design.pairs)) or "none"}
    for part in ("distill", "finetune", "evaluate"):
        flat |= {f"{part}.{name}": str(value) for name, value in getattr(spec, part).model_dump().items()}
    return flat


def _short(operator: dict[str, Any]) -> str:
    fields = {name: value for name, value in operator.items() if name != "kind" and value is not None}
    return f"{operator['kind']}{json.dumps(fields) if fields else ''}"


def _metrics(event: RunEvent) -> Iterator[Metric]:
    """Curves by stage and step; a finished stage's figures under their own names."""
    body = event.event.body if event.event else None
    at = int(event.at.timestamp() * 1000)
    if isinstance(body, Progress):
        for name, value in body.values.items():
            if math.isfinite(value):
                yield Metric(_name(f"{body.stage}/{name}"), value, at, body.step)
    elif isinstance(body, StageDone):
        for name, value in {**body.report.metrics, **_clock(body.report)}.items():
            yield Metric(_name(name), value, at, 0)


def _clock(report: StageReport) -> dict[str, float]:
    """What the clock said, and the ends of the intervals."""
    ends = {f"{name} low": low for name, (low, _) in report.intervals.items()}
    ends |= {f"{name} high": high for name, (_, high) in report.intervals.items()}
    if report.cost is None:
        return ends
    forwards = {f"cost/seconds a forward of {each.batch}": each.median for each in report.cost.latencies}
    rate = {"cost/images a second": report.cost.images_per_second}
    return {**ends, **forwards, **rate, "cost/peak bytes": float(report.cost.peak_bytes)}


def _name(text: str) -> str:
    """MLflow allows letters, digits, underscore, dash, period, space, colon and slash."""
    return text[:250]
