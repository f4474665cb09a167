"""Ties of ranked runs: runs whose metrics differ by less than the uncertainty of the difference."""

from collections.abc import Iterator, Sequence

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from grafting_core.specs.private_names import shown_metric
from service.db.tables import StageRow
from service.schemas.leaderboard import LeaderboardRow


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
    return [
        row.model_copy(update={"rank_from": first, "rank_to": last})
        for row, (first, last) in zip(measured, _rank_ranges(measured), strict=True)
    ]


def _intervals(session: Session, ids: Sequence[str]) -> dict[str, dict[str, tuple[float, float]]]:
    query = select(StageRow.run_id, StageRow.report["intervals"])
    results = session.execute(query.where(StageRow.run_id.in_(ids), StageRow.stage == "evaluate"))
    return {
        run_id: {shown_metric(name): (low, high) for name, (low, high) in (intervals or {}).items()}
        for run_id, intervals in results
    }


def _rank_ranges(rows: Sequence[LeaderboardRow]) -> Iterator[tuple[int, int]]:
    """First and last rank of the rows that each is tied with, itself included."""
    values = np.array([row.value for row in rows])
    halves = np.array([(row.interval[1] - row.interval[0]) / 2 if row.interval else np.nan for row in rows])
    ranks = [row.rank for row in rows]
    for index, row in enumerate(rows):
        # Comparisons with NaN are false.
        tied = np.flatnonzero(np.abs(values - values[index]) <= np.hypot(halves, halves[index]))
        tied_ranks = [row.rank, *(ranks[other] for other in tied)]
        yield min(tied_ranks), max(tied_ranks)
