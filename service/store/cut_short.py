"""Runs that ended early with a result: they stay on the board at the rung they reached, unranked."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from grafting_core.spec.experiment import ExperimentSpec
from grafting_core.spec.ladder import ladder_of
from service.api.schemas import CutShort
from service.store.models import ExperimentRow, RunRow
from service.store.queries import reports_of, spec_of, spends_of
from workers.contract import StageReport

SHOWN = 50


def cut_short(session: Session, owner: str | None, protocol: str | None) -> list[CutShort]:
    """The newest grafts that a budget or their own divergence stopped."""
    query = (
        select(RunRow)
        .join(RunRow.experiment)
        .where(RunRow.state == "STOPPED", ExperimentRow.kind == "graft")
        .order_by(RunRow.created_at.desc())
        .limit(SHOWN)
    )
    if owner is not None:
        query = query.where(ExperimentRow.owner == owner)
    if protocol is not None:
        query = query.where(ExperimentRow.protocol_digest == protocol)
    rows = session.scalars(query).all()
    ids = [row.id for row in rows]
    spends, reports = spends_of(session, ids), reports_of(session, ids)
    return [
        CutShort(
            run_id=row.id,
            name=row.experiment.name,
            protocol_digest=row.experiment.protocol_digest,
            reason=row.reason,
            reached=_reached(row, reports.get(row.id, [])),
            rungs=_rungs(spec_of(row), reports.get(row.id, [])),
            spend=spends[row.id],
        )
        for row in rows
    ]


def _reached(row: RunRow, reports: Sequence[StageReport]) -> str:
    """`distill done, finetune 120/300`."""
    done = [f"{report.stage} done" for report in reports]
    under_way = row.stage is not None and row.stage not in {report.stage for report in reports}
    return ", ".join([*done, *([f"{row.stage} {row.step}/{row.total_steps}"] if under_way else [])])


def _rungs(spec: ExperimentSpec, reports: Sequence[StageReport]) -> dict[str, float]:
    """Of the ladder's numbers those that were measured before it ended."""
    names = set(ladder_of(spec.evaluate).metrics)
    return {name: value for report in reports for name, value in report.metrics.items() if name in names}
