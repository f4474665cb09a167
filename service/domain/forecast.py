"""How long will it take? Device-seconds of new work, predicted from what this lab's own runs took.

A stage's device-seconds are its FLOPs times the lab's median of them a FLOP for that stage; starting an
attempt takes each of its devices the time that it has taken in the middle. The interval comes from the same
runs: how far each was from what this rule says of it.
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
"""Below this many runs their spread says little, and the interval is taken wide."""
WIDE = 2.0
TAIL = 0.1
"""Share of the runs left outside at either end of the interval."""
FOLDERS = {"distill": "scions", "finetune": "models", "evaluate": "evaluations"}


@dataclass(frozen=True)
class PastRun:
    """One finished run: FLOPs and device-seconds by stage that was really carried out, and the rest."""

    flops: Mapping[str, float]
    seconds: Mapping[str, float]
    starting: float
    devices: int = 1

    @property
    def total(self) -> float:
        return sum(self.seconds.values()) + self.starting


@dataclass(frozen=True)
class Rates:
    """Device-seconds a FLOP by stage, over all stages, and seconds to start."""

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
    """Device-seconds of work of so many FLOPs a stage, or None where the lab has finished nothing like it."""
    return predicted(history(session, backbone), flops, devices)


def predicted(past: Sequence[PastRun], flops: Mapping[str, float], devices: int) -> Forecast | None:
    """The forecast for so many devices that follows from what the lab has done."""
    if not past:
        return None
    rates = _rates(past)
    expected = rates.predict(flops, devices)
    low, high = _spread([run.total / rates.predict(run.flops, run.devices) for run in past])
    return Forecast(device_seconds=expected, low=low * expected, high=high * expected, runs=len(past))


class Foresight:
    """Forecasts of runs that nobody could make when they were submitted, of all that each may have to do.

    Without one a run would claim its whole budget, and the runs of a study would wait for each other.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._past: dict[str, list[PastRun]] = {}

    def of(self, run: RunRow) -> dict[str, Any] | None:
        """The run's own where it has one; the lab's history is read once a backbone."""
        if run.forecast is not None or not run.planned:
            return run.forecast
        backbone = run.experiment.backbone
        if backbone not in self._past:
            self._past[backbone] = history(self._session, backbone)
        flops = {stage: float(spend["flops"]) for stage, spend in run.planned.items()}
        made = predicted(self._past[backbone], flops, run.devices)
        return made.model_dump() if made else None


def outstanding(plan: ExperimentPlan, storage: Storage) -> dict[str, float]:
    """FLOPs of the plan's stages that are not published yet, scions counted one by one."""
    return {
        stage.stage: stage.spend.flops * _missing(list(stage.keys.values()), FOLDERS[stage.stage], storage)
        for stage in plan.stages
    }


def _missing(keys: Sequence[str], folder: str, storage: Storage) -> float:
    """Share of the keys under which nothing is published."""
    return sum(not storage.exists(f"{folder}/{key}/card.json") for key in keys) / len(keys)


def history(session: Session, backbone: str) -> list[PastRun]:
    """The lab's latest finished grafts of a backbone."""
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
    """None for a run whose reports cannot be read: it is named once, and the others tell enough."""
    try:
        return _past(stages, used, devices)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        say(
            ("reports", stages[0].run_id),
            f"run {stages[0].run_id}: its reports cannot be read: {brief(error)}",
        )
        return None


def _attempt_seconds(session: Session, ids: Sequence[str]) -> dict[str, float]:
    """Of runs that needed one attempt: repeated work would count as slowness."""
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
    """Low and high quantile of actual over predicted; a factor of two either way where runs are few."""
    ordered = sorted(ratios)
    if len(ordered) < FEW:
        return min(1 / WIDE, ordered[0]), max(WIDE, ordered[-1])
    outside = int(TAIL * len(ordered))
    return min(1.0, ordered[outside]), max(1.0, ordered[-1 - outside])
