"""Table of operator latencies from runs, and the measured latency of finished networks."""

from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy.orm import Session

from grafting_core.specs.latency import PartLatency, row_path
from grafting_core.specs.results import Latency, MeasuredCost
from grafting_core.specs.studies.study import StudySpec
from grafting_core.storage.checksums import read_with_digest
from grafting_core.storage.storage import Storage
from service.db.tables import RunRow, StageRow
from service.domain.run_queries import parsed
from service.schemas.rung_agreement import LatencyTable

ROOT = row_path("").rpartition("/")[0]


def latency_rows(session: Session, storage: Storage, run: RunRow) -> list[PartLatency]:
    """Return the rows that a finished measurement run reports, without unreadable ones."""
    stage = session.get(StageRow, (run.id, "measure"))
    paths = stage.report["artifacts"].values() if stage is not None else ()
    rows = [read_with_digest(storage, path, PartLatency) for path in paths]
    return [row for row in rows if row is not None]


def latency_table(storage: Storage, kind: str | None = None, tokens: int | None = None) -> LatencyTable:
    """Return all rows, ordered by device, sizes and place, filtered by kind and tokens if given."""
    rows = [row for row in _all(storage) if _matches(row, kind, tokens)]
    return LatencyTable(rows=sorted(rows, key=_order))


def _all(storage: Storage) -> Iterator[PartLatency]:
    for name in storage.names(ROOT):
        row = read_with_digest(storage, f"{ROOT}/{name}", PartLatency) if name.endswith(".json") else None
        if row is not None:
            yield row


def _matches(row: PartLatency, kind: str | None, tokens: int | None) -> bool:
    own = row.part.operator.kind if row.part.operator is not None else row.part.place
    return kind in (None, own) and tokens in (None, row.tokens)


def _order(row: PartLatency) -> tuple[object, ...]:
    sizes = (row.tokens, row.width, row.batch, row.precision)
    return (row.hardware.device, row.hardware.digest, *sizes, row.part.place, row.seconds.median)


def clocked(spec: StudySpec, cost: Mapping[str, Any] | None) -> Latency | None:
    """Return the measured latency of a finished network at the table's batch size.

    None if the study has no table, or the evaluation ran on other hardware.
    """
    if not cost or not spec.latencies:
        return None
    measured = parsed(MeasuredCost, dict(cost))
    if measured.hardware != spec.latencies[0].hardware:
        return None
    return next((row for row in measured.latencies if row.batch == spec.evaluate.micro_batch), None)


def keeps_limit(spec: StudySpec, ratio: float | None) -> bool | None:
    """Check a measured ratio against the study's latency limit; None if there is no limit or no ratio."""
    bound = next((limit.at_most for limit in spec.limits if limit.cost == "latency"), None)
    return None if bound is None or ratio is None else ratio <= bound
