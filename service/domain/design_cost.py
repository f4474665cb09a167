"""What a design cost to make: all that the run used, and the full price of what it found made by others."""

from collections.abc import Mapping, Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from grafting_core.specs.budget import Usage
from service.db.tables import AttemptRow, RunRow, StageRow
from service.domain.run_queries import parsed, reports_of
from workers.contract import STAGES, StageReport


def cost_of_making(session: Session, run: RunRow) -> Usage | None:
    """None where the price of something that was found made is not known."""
    total = sum((attempt.spend for attempt in _attempts(session, run.id)), Usage())
    for report in reports_of(session, [run.id]).get(run.id, []):
        price = _price_of_found(session, run.id, report)
        if price is None:
            return None
        total += price
    return total


def _price_of_found(session: Session, run_id: str, report: StageReport) -> Usage | None:
    """Of what a stage of the run found made by other runs; no price for what the run itself has made."""
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
    """What a run used for one of its stages, over all attempts; None for a run that we do not know.

    A report tells of its own attempt alone. What earlier attempts used after the stage before was done was
    used for this stage.
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
    told = [_spend_of(row) for row in before if first <= row.attempt < last]
    own = _spend_of(rows[stage]) if stage in rows else Usage()
    return own + without(sum(used, Usage()), sum(told, Usage()))


def _attempts(session: Session, run_id: str) -> Sequence[AttemptRow]:
    query = select(AttemptRow).where(AttemptRow.run_id == run_id)
    return session.scalars(query.order_by(AttemptRow.number)).all()


def _spend_of(row: StageRow) -> Usage:
    return parsed(StageReport, row.report).spend


def without(whole: Usage, part: Usage) -> Usage:
    """What is left of a spend, nowhere below zero."""
    return Usage(
        device_seconds=max(0.0, whole.device_seconds - part.device_seconds),
        flops=max(0.0, whole.flops - part.flops),
        training_images=max(0, whole.training_images - part.training_images),
    )
