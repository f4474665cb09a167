"""Forecast of device-seconds of new work, from the finished runs of this lab.

A stage's device-seconds are its FLOPs times the median seconds per FLOP of that stage in past runs.
Start-up time per device is the median of past runs. The interval is the spread of actual over predicted
seconds in the same runs.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from grafting_core.specs.cost import ExperimentPlan
from grafting_core.storage.storage import Storage
from service.db.tables import AttemptRow, ExperimentRow, RunRow, StageRow
from service.log_once import Once, brief
from service.schemas.runs import Forecast

say = Once(logging.getLogger("graftlab.forecast"))
RUNS_READ = 100
FEW = 5
"""Number of runs below which their spread says little and the interval is made wide."""
WIDE = 2.0
TAIL = 0.1
"""Share of the runs outside the interval at either end."""
FOLDERS = {"distill": "scions", "finetune": "models", "evaluate": "evaluations"}


@dataclass(frozen=True)
class PastRun:
    """One finished run: FLOPs and device-seconds by stage that was computed, and start-up seconds."""

    flops: Mapping[str, float]
    seconds: Mapping[str, float]
    starting: float
    devices: int = 1

    @property
    def total(self) -> float:
        return sum(self.seconds.values()) + self.starting


@dataclass(frozen=True)
class Rates:
    """Device-seconds per FLOP by stage and over all stages, and start-up seconds per device."""

    by_stage: Mapping[str, float]
    overall: float
    starting: float

    def predict(self, flops: Mapping[str, float], devices: int) -> float:
        return self.starting * devices + sum(
            amount * self.by_stage.get(stage, self.overall) for stage, amount in flops.items()
        )


def forecast(
    session: Session, backbone: str, flops: Mapping[str, float], devices: int = 1
) -> Forecast | None:
    """Forecast the device-seconds of work with these FLOPs by stage; None without comparable finished
    runs.
    """
    return predicted(history(session, backbone), flops, devices)


def predicted(past: Sequence[PastRun], flops: Mapping[str, float], devices: int) -> Forecast | None:
    """Forecast the device-seconds on `devices` devices from past runs; None without any."""
    if not past:
        return None
    rates = _rates(past)
    expected = rates.predict(flops, devices)
    low, high = _spread([run.total / rates.predict(run.flops, run.devices) for run in past])
    return Forecast(device_seconds=expected, low=low * expected, high=high * expected, runs=len(past))


class Foresight:
    """Forecasts for queued runs that had none at submission, for all the work each may have to do.

    Without a forecast a run would reserve its whole budget, and the runs of a study would wait for each
    other.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._past: dict[str, list[PastRun]] = {}

    def of(self, run: RunRow) -> dict[str, Any] | None:
        """Return the run's forecast, or make one; the lab's history is read once per backbone."""
        if run.forecast is not None or not run.planned:
            return run.forecast
        backbone = run.experiment.backbone
        if backbone not in self._past:
            self._past[backbone] = history(self._session, backbone)
        flops = {stage: float(spend["flops"]) for stage, spend in run.planned.items()}
        made = predicted(self._past[backbone], flops, run.devices)
        return made.model_dump() if made else None


def outstanding(plan: ExperimentPlan, storage: Storage) -> dict[str, float]:
    """Return the FLOPs of the plan's stages that are not published yet, counting scions one by one."""
    return {
        stage.stage: stage.spend.flops * _missing(list(stage.keys.values()), FOLDERS[stage.stage], storage)
        for stage in plan.stages
    }


def _missing(keys: Sequence[str], folder: str, storage: Storage) -> float:
    """Return the share of the keys under which nothing is published."""
    return sum(not storage.exists(f"{folder}/{key}/card.json") for key in keys) / len(keys)


def history(session: Session, backbone: str) -> list[PastRun]:
    """Return the lab's latest finished grafts of a backbone."""
    runs = (
        select(RunRow.id, RunRow.workers, RunRow.gpus)
        .join(RunRow.experiment)
        .where(RunRow.state == "SUCCEEDED", ExperimentRow.kind == "graft", ExperimentRow.backbone == backbone)
        .order_by(RunRow.id.desc())
        .limit(RUNS_READ)
    )
    devices = {row.id: max(row.workers, row.gpus) for row in session.execute(runs)}
    ids = list(devices)
    used = _attempt_seconds(session, ids)
    done: dict[str, list[StageRow]] = {run_id: [] for run_id in ids}
    for row in session.scalars(select(StageRow).where(StageRow.run_id.in_(ids))):
        done[row.run_id].append(row)
    past = [_read_past(done[run_id], used.get(run_id, 0.0), devices[run_id]) for run_id in ids]
    return [run for run in past if run is not None and run.flops]


def _read_past(stages: Sequence[StageRow], used: float, devices: int) -> PastRun | None:
    """Read a past run; None if its reports cannot be read, which is logged once."""
    try:
        return _past(stages, used, devices)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        say(
            ("reports", stages[0].run_id),
            f"run {stages[0].run_id}: its reports cannot be read: {brief(error)}",
        )
        return None


def _attempt_seconds(session: Session, ids: Sequence[str]) -> dict[str, float]:
    """Return device-seconds of runs that needed one attempt: repeated work would make them look slow."""
    rows = session.scalars(select(AttemptRow).where(AttemptRow.run_id.in_(ids))).all()
    repeated = {row.run_id for row in rows if row.number > 1}
    return {row.run_id: row.device_seconds for row in rows if row.run_id not in repeated}


def _past(stages: Sequence[StageRow], used: float, devices: int) -> PastRun:
    spends = {
        row.stage: row.report["spend"] for row in stages if row.report["stop_cause"] == "completed" and used
    }
    flops = {stage: float(spend["flops"]) for stage, spend in spends.items() if spend["flops"]}
    seconds = {stage: float(spends[stage]["device_seconds"]) for stage in flops}
    return PastRun(flops, seconds, max(0.0, used - sum(seconds.values())), devices)


def _rates(past: Sequence[PastRun]) -> Rates:
    stages = {stage for run in past for stage in run.flops}
    by_stage = {
        stage: median(run.seconds[stage] / run.flops[stage] for run in past if stage in run.flops)
        for stage in stages
    }
    overall = median(sum(run.seconds.values()) / sum(run.flops.values()) for run in past)
    return Rates(by_stage, overall, median(run.starting / run.devices for run in past))


def _spread(ratios: Sequence[float]) -> tuple[float, float]:
    """Return the low and high quantile of actual over predicted; a factor of two either way for few runs."""
    ordered = sorted(ratios)
    if len(ordered) < FEW:
        return min(1 / WIDE, ordered[0]), max(WIDE, ordered[-1])
    outside = int(TAIL * len(ordered))
    return min(1.0, ordered[outside]), max(1.0, ordered[-1 - outside])
