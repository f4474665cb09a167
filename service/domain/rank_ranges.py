"""Ties of ranked runs: runs whose metrics differ by less than the uncertainty of the difference."""

from collections.abc import Sequence
from math import hypot

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.db.tables import StageRow
from service.schemas.runs import LeaderboardRow


def with_ties(session: Session, rows: Sequence[LeaderboardRow]) -> list[LeaderboardRow]:
    """Add to each row the 95 % interval of its metric and the range of ranks, among these rows, it may have.

    The half-width of a difference is the root of the sum of both squared half-widths, as for independent
    samples. Designs sampled from the same noise differ by less, so ties are called too often rather than
    too seldom. A row without an interval is never tied.
    """
    intervals = _intervals(session, [row.run_id for row in rows])
    measured = [
        row.model_copy(update={"interval": intervals.get(row.run_id, {}).get(row.metric)}) for row in rows
    ]
    return [_ranged(row, measured) for row in measured]


def _intervals(session: Session, ids: Sequence[str]) -> dict[str, dict[str, tuple[float, float]]]:
    query = select(StageRow.run_id, StageRow.report["intervals"])
    results = session.execute(query.where(StageRow.run_id.in_(ids), StageRow.stage == "evaluate"))
    return {
        run_id: {name: (low, high) for name, (low, high) in (intervals or {}).items()}
        for run_id, intervals in results
    }


def _ranged(row: LeaderboardRow, rows: Sequence[LeaderboardRow]) -> LeaderboardRow:
    ranks = [other.rank for other in rows if other is row or _tied(row, other)]
    return row.model_copy(update={"rank_from": min(ranks), "rank_to": max(ranks)})


def _tied(one: LeaderboardRow, other: LeaderboardRow) -> bool:
    if one.interval is None or other.interval is None:
        return False
    halves = ((high - low) / 2 for low, high in (one.interval, other.interval))
    return abs(one.value - other.value) <= hypot(*halves)
