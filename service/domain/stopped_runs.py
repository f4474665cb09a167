"""Runs that stopped early with a result: shown on the leaderboard with the rung they reached, unranked."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from grafting_core.specs.budget import Usage
from grafting_core.specs.plans import EvaluationProtocol
from grafting_core.specs.rungs import ladder_of
from service.db.tables import ExperimentRow, RunRow
from service.domain.run_queries import parsed, reports_of, spends_of
from service.domain.visibility import title_to, withheld_runs
from service.schemas.leaderboard import CutShort
from workers.contract import StageReport

SHOWN, LOOKED_AT = 50, 500


def cut_short(session: Session, owner: str | None, protocol: str | None) -> list[CutShort]:
    """List the newest grafts that stopped on a budget or a divergence."""
    rows = _newest(session, owner, protocol)
    ids = [row.id for row in rows]
    spends, reports = spends_of(session, ids), reports_of(session, ids)
    withheld = withheld_runs(session, ids)
    return [
        CutShort(
            run_id=row.id,
            name=title_to(row.experiment.name, row.id in withheld),
            protocol_digest=row.experiment.protocol_digest,
            reason=row.reason,
            reached=_reached(row, reports.get(row.id, [])),
            rungs=_rungs(row.experiment.spec["evaluate"], reports.get(row.id, [])),
            spend=spends.get(row.id, Usage()),
        )
        for row in rows
    ]


def _newest(session: Session, owner: str | None, protocol: str | None) -> Sequence[RunRow]:
    """Return at most SHOWN grafts among the newest LOOKED_AT stopped runs, so that the query stays
    bounded.
    """
    stopped = select(RunRow.id).where(RunRow.state == "STOPPED")
    if owner is not None:
        stopped = stopped.where(RunRow.owner == owner)
    window = stopped.order_by(RunRow.id.desc()).limit(LOOKED_AT).subquery()
    query = (
        select(RunRow)
        .join(window, window.c.id == RunRow.id)
        .join(ExperimentRow, ExperimentRow.id == RunRow.experiment_id)
        .where(ExperimentRow.kind == "graft")
    )
    if protocol is not None:
        query = query.where(ExperimentRow.protocol_digest == protocol)
    return session.scalars(query.order_by(RunRow.id.desc()).limit(SHOWN)).all()


def _reached(row: RunRow, reports: Sequence[StageReport]) -> str:
    """Describe how far a run came, such as `distill done, finetune 120/300`."""
    done = [f"{report.stage} done" for report in reports]
    under_way = row.stage is not None and row.stage not in {report.stage for report in reports}
    return ", ".join([*done, *([f"{row.stage} {row.step}/{row.total_steps}"] if under_way else [])])


def _rungs(protocol: dict[str, Any], reports: Sequence[StageReport]) -> dict[str, float]:
    """Return the ladder's metrics that were measured before the run ended."""
    names = set(ladder_of(parsed(EvaluationProtocol, protocol)).metrics)
    return {name: value for report in reports for name, value in report.metrics.items() if name in names}
