"""Cost of making a design: the run's own use, and the full price of artifacts it reused from other runs."""

from collections.abc import Mapping, Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from grafting_core.specs.budget import Usage
from service.db.tables import AttemptRow, RunRow, StageRow
from service.domain.run_queries import parsed, reports_of
from workers.contract import STAGES, StageReport


def cost_of_making(session: Session, run: RunRow) -> Usage | None:
    """Return the cost of a run's design; None if the price of a reused artifact is not known."""
    total = sum((attempt.spend for attempt in _attempts(session, run.id)), Usage())
    for report in reports_of(session, [run.id]).get(run.id, []):
        price = _price_of_reused(session, run.id, report)
        if price is None:
            return None
        total += price
    return total


def _price_of_reused(session: Session, run_id: str, report: StageReport) -> Usage | None:
    """Return the price of what a stage reused from other runs; artifacts of the run itself count nothing."""
    if report.stage == "distill":
        return sum(report.found.values(), Usage()) if len(report.found) >= len(report.made_by) else None
    total = Usage()
    for maker in set(report.made_by.values()) - {run_id}:
        price = _price_of_stage(session, maker, report.stage)
        if price is None:
            return None
        total += price
    return total


def _price_of_stage(session: Session, run_id: str, stage: str) -> Usage | None:
    """Return a run's use for one of its stages, over all attempts; None if the run is unknown.

    A report covers its own attempt only. Use of earlier attempts, after the preceding stage was done,
    belongs to this stage.
    """
    attempts = _attempts(session, run_id)
    if not attempts:
        return None
    query = select(StageRow).where(StageRow.run_id == run_id)
    rows: Mapping[str, StageRow] = {row.stage: row for row in session.scalars(query)}
    before = [rows[name] for name in STAGES[: STAGES.index(stage)] if name in rows]
    first = max((row.attempt for row in before), default=1)
    last = rows[stage].attempt if stage in rows else attempts[-1].number + 1
    used = [attempt.spend for attempt in attempts if first <= attempt.number < last]
    reported = [_spend_of(row) for row in before if first <= row.attempt < last]
    own = _spend_of(rows[stage]) if stage in rows else Usage()
    return own + without(sum(used, Usage()), sum(reported, Usage()))


def _attempts(session: Session, run_id: str) -> Sequence[AttemptRow]:
    query = select(AttemptRow).where(AttemptRow.run_id == run_id)
    return session.scalars(query.order_by(AttemptRow.number)).all()


def _spend_of(row: StageRow) -> Usage:
    return parsed(StageReport, row.report).spend


def without(whole: Usage, part: Usage) -> Usage:
    """Subtract `part` from `whole`, field by field, not below zero."""
    return Usage(
        device_seconds=max(0.0, whole.device_seconds - part.device_seconds),
        flops=max(0.0, whole.flops - part.flops),
        training_images=max(0, whole.training_images - part.training_images),
    )
