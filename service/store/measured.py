"""Agreement of the fidelity ladder's rungs, and latency by hardware, over the newest standings."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from grafting_core.spec.experiment import ExperimentSpec, finetune_key
from grafting_core.spec.ladder import agreements, comparable_digest, ladder_of
from grafting_core.spec.results import Latency, MeasuredCost
from service.api.measured_schemas import LadderGroup, LatencyGroup, LatencyRow, Measured
from service.store.models import RunRow, StageRow, StandingRow
from service.store.queries import spec_of
from workers.contract import StageReport

NEWEST = 500


@dataclass(frozen=True)
class Judged:
    """One finished run with its evaluation."""

    run_id: str
    name: str
    spec: ExperimentSpec
    report: StageReport


def measured(session: Session, owner: str | None = None) -> Measured:
    """Of the newest 500 runs on the leaderboard; of one owner where it is given."""
    judged = _judged(session, owner)
    return Measured(ladders=_ladders(judged), latencies=_latencies(judged))


def _judged(session: Session, owner: str | None) -> list[Judged]:
    ranked = StandingRow.is_current.is_(True) if owner is None else StandingRow.owner == owner
    query = (
        select(RunRow, StageRow)
        .join(StandingRow, StandingRow.run_id == RunRow.id)
        .join(StageRow, (StageRow.run_id == RunRow.id) & (StageRow.stage == "evaluate"))
        .where(ranked)
        .order_by(RunRow.id.desc())
        .limit(NEWEST)
    )
    return [
        Judged(
            run.id,
            run.experiment.name,
            spec_of(run),
            StageReport.model_validate_json(json.dumps(stage.report)),
        )
        for run, stage in session.execute(query)
    ]


def _ladders(judged: Iterable[Judged]) -> list[LadderGroup]:
    groups: dict[str, list[Judged]] = {}
    for each in judged:
        alike = comparable_digest(each.spec.backbone.digest, each.spec.evaluate)
        groups.setdefault(alike, []).append(each)
    return [_ladder(members) for _, members in sorted(groups.items())]


def _ladder(members: list[Judged]) -> LadderGroup:
    dearest = max((each.spec.evaluate for each in members), key=lambda protocol: protocol.samples)
    models: dict[str, dict[str, float]] = {}
    for each in members:
        models.setdefault(finetune_key(each.spec), {}).update(each.report.metrics)
    known: list[Mapping[str, float]] = list(models.values())
    return LadderGroup(
        backbone=members[0].spec.backbone.name,
        protocol=dearest,
        models=len(models),
        agreements=list(agreements(ladder_of(dearest), known)),
    )


def _latencies(judged: Iterable[Judged]) -> list[LatencyGroup]:
    groups: dict[tuple[str, str, int], list[tuple[Judged, MeasuredCost, Latency]]] = {}
    for each in judged:
        for latency in each.report.cost.latencies if each.report.cost else ():
            assert each.report.cost is not None
            key = (each.spec.backbone.name, each.report.cost.hardware.digest, latency.batch)
            groups.setdefault(key, []).append((each, each.report.cost, latency))
    return [_latency_group(*key, members) for key, members in sorted(groups.items())]


def _latency_group(
    backbone: str, digest: str, batch: int, members: list[tuple[Judged, MeasuredCost, Latency]]
) -> LatencyGroup:
    ordered = sorted(members, key=lambda member: member[2].ratio)
    return LatencyGroup(
        backbone=backbone,
        hardware=members[0][1].hardware,
        hardware_digest=digest,
        batch=batch,
        rows=[_latency_row(rank, *member) for rank, member in enumerate(ordered, 1)],
    )


def _latency_row(rank: int, judged: Judged, cost: MeasuredCost, latency: Latency) -> LatencyRow:
    return LatencyRow(
        rank=rank,
        run_id=judged.run_id,
        name=judged.name,
        milliseconds=1e3 * latency.median,
        ratio=latency.ratio,
        ratio_low=latency.ratio_low,
        ratio_high=latency.ratio_high,
        verdict=latency.verdict,
        images_per_second=cost.images_per_second,
        peak_bytes=cost.peak_bytes,
    )
