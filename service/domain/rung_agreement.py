"""Rank agreement of the fidelity ladder's rungs, and latency by hardware, over the newest leaderboard
entries.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import case, func, select
from sqlalchemy.orm import Session, aliased

from grafting_core.specs.plans import EvaluationProtocol
from grafting_core.specs.results import Latency, MeasuredCost
from grafting_core.specs.rungs import comparable_digest, ladder_of
from grafting_core.specs.studies.rank_correlation import agreements
from service.db.tables import ExperimentRow, LeaderboardEntryRow, RunDependencyRow, RunRow, StageRow
from service.domain.run_queries import parsed
from service.domain.visibility import names_something_hidden, title_to
from service.schemas.rung_agreement import LadderGroup, LatencyGroup, LatencyRow, Measurements

NEWEST = 200


@dataclass(frozen=True)
class Judged:
    """One finished run with its evaluation."""

    run_id: str
    name: str
    backbone: str
    subject: str
    """Digest of the backbone."""
    protocol: EvaluationProtocol
    model: str
    """Key of the evaluated network: equal keys mean one network."""
    metrics: dict[str, float]
    cost: MeasuredCost | None


def measured(session: Session, owner: str | None = None) -> Measurements:
    """Return measurements of the newest 200 runs on the leaderboard, of one owner if given."""
    judged = _judged(session, owner)
    return Measurements(ladders=_ladders(judged), latencies=_latencies(judged))


def _judged(session: Session, owner: str | None) -> list[Judged]:
    ranked = LeaderboardEntryRow.is_current.is_(True) if owner is None else LeaderboardEntryRow.owner == owner
    newest = (
        select(LeaderboardEntryRow.run_id, LeaderboardEntryRow.is_teacher)
        .where(ranked)
        .order_by(LeaderboardEntryRow.run_id.desc())
        .limit(NEWEST)
        .subquery()
    )
    spec, finetuned = ExperimentRow.spec, aliased(StageRow)
    model = func.coalesce(finetuned.report["key"].as_string(), RunDependencyRow.key, RunRow.id)
    query = (
        select(
            RunRow.id,
            ExperimentRow.name,
            spec["design"]["backbone"],
            spec["evaluate"],
            case((newest.c.is_teacher, "teacher"), else_=model),
            StageRow.report,
        )
        .join(newest, newest.c.run_id == RunRow.id)
        .join(ExperimentRow, ExperimentRow.id == RunRow.experiment_id)
        .join(StageRow, (StageRow.run_id == RunRow.id) & (StageRow.stage == "evaluate"))
        .outerjoin(finetuned, (finetuned.run_id == RunRow.id) & (finetuned.stage == "finetune"))
        .outerjoin(
            RunDependencyRow, (RunDependencyRow.run_id == RunRow.id) & (RunDependencyRow.folder == "models")
        )
        .order_by(RunRow.id.desc())
    )
    return [_judged_run(*row) for row in session.execute(query)]


def _judged_run(
    run_id: str,
    name: str,
    backbone: dict[str, str],
    protocol: dict[str, Any],
    model: str,
    report: dict[str, Any],
) -> Judged:
    return Judged(
        run_id=run_id,
        name=name,
        backbone=backbone["name"],
        subject=backbone["digest"],
        protocol=parsed(EvaluationProtocol, protocol),
        model=model,
        metrics=report["metrics"],
        cost=parsed(MeasuredCost, report["cost"]) if report.get("cost") else None,
    )


def _ladders(judged: Iterable[Judged]) -> list[LadderGroup]:
    groups: dict[str, list[Judged]] = {}
    for run in judged:
        comparable = comparable_digest(run.subject, run.protocol)
        groups.setdefault(comparable, []).append(run)
    return [_ladder(members) for _, members in sorted(groups.items())]


def _ladder(members: list[Judged]) -> LadderGroup:
    costliest = max((run.protocol for run in members), key=lambda protocol: protocol.samples)
    models: dict[str, dict[str, float]] = {}
    for run in members:
        models.setdefault(run.model, {}).update(run.metrics)
    known: list[Mapping[str, float]] = list(models.values())
    return LadderGroup(
        backbone=members[0].backbone,
        protocol=costliest,
        models=len(models),
        agreements=list(agreements(ladder_of(costliest), known)),
    )


def _latencies(judged: Iterable[Judged]) -> list[LatencyGroup]:
    groups: dict[tuple[str, str, int], list[tuple[Judged, MeasuredCost, Latency]]] = {}
    for run in judged:
        if run.cost is None:
            continue
        hardware = run.cost.hardware.digest
        for latency in run.cost.latencies:
            groups.setdefault((run.backbone, hardware, latency.batch), []).append((run, run.cost, latency))
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
        name=title_to(judged.name, names_something_hidden(judged.backbone, judged.protocol)),
        milliseconds=1e3 * latency.median,
        ratio=latency.ratio,
        ratio_low=latency.ratio_low,
        ratio_high=latency.ratio_high,
        verdict=latency.verdict,
        images_per_second=cost.images_per_second,
        peak_bytes=cost.peak_bytes,
    )
