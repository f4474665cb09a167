"""A run's spec and events as MLflow's parameters and metrics."""

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from mlflow.entities import Metric, Param

from grafting_core.specs.experiment import ExperimentSpec
from service.schemas.runs import RunDetail, RunEvent
from workers.contract import Progress, StageDone, StageReport


def params(detail: RunDetail) -> list[Param]:
    """Return the submission as flat parameters; MLflow keeps up to 6,000 characters each."""
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


def metrics(event: RunEvent) -> Iterator[Metric]:
    """Yield curves by stage and step, and a finished stage's metrics under their own names."""
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
    """Return measured times and the ends of intervals."""
    ends = {f"{name} low": low for name, (low, _) in report.intervals.items()}
    ends |= {f"{name} high": high for name, (_, high) in report.intervals.items()}
    if report.cost is None:
        return ends
    forwards = {
        f"cost/seconds a forward of {latency.batch}": latency.median for latency in report.cost.latencies
    }
    rate = {"cost/images a second": report.cost.images_per_second}
    return {**ends, **forwards, **rate, "cost/peak bytes": float(report.cost.peak_bytes)}


NOT_IN_NAMES = re.compile(r"[^\w\-. :/]|^/|/(?=/|$)|(?<![^/])[.]+(?=/|$)", re.ASCII)


def _name(text: str) -> str:
    """Return a name of the characters that MLflow allows, as a clean path."""
    return NOT_IN_NAMES.sub("_", text)[:250]
