"""MEASURE: time the rows of the latency table that are missing for this device, publishing each one."""

import time

from grafting_core.evaluation.latency import LatencyBench
from grafting_core.specs.latency import LatencySpec, PartLatency, TimedPart, row_path
from grafting_core.storage.checksums import read_with_digest, write_with_digest
from grafting_core.training.observer import StopRequested
from workers.contract import StageReport
from workers.stages.context import Context


def run(context: Context) -> StageReport:
    """Rank 0 measures; the others of its group wait. Raises ValueError for work of another kind."""
    work = context.work
    if not isinstance(work, LatencySpec):
        raise ValueError(f"{work.name} is {work.kind} work, not a latency table")
    bench = LatencyBench(context.backbone, work)
    made = _fill_in(context, work, bench) if context.group.leads else 0
    context.group.barrier()
    return StageReport(
        stage="measure",
        key=work.digest,
        artifacts={part.name: row_path(bench.key(part)) for part in work.parts},
        stop_cause="completed" if made else "reused",
    )


def _fill_in(context: Context, work: LatencySpec, bench: LatencyBench) -> int:
    """Number of rows measured. Rows that a stopped attempt measured stay published."""
    observer, made = context.observer("measure", work.digest), 0
    observer.progress(0, len(work.parts), {})
    for done, part in enumerate(work.parts, 1):
        made += _add_row(context, bench, part)
        observer.progress(done, len(work.parts), {})
        if observer.stop_requested():
            raise StopRequested
    return made


def _add_row(context: Context, bench: LatencyBench, part: TimedPart) -> bool:
    """Measure the row unless it is published; whether it was measured."""
    path = row_path(bench.key(part))
    if read_with_digest(context.storage, path, PartLatency) is not None:
        return False
    row = bench.measure(part)
    made = {"made_by": context.ticket.run_id, "made_at": time.time()}
    write_with_digest(context.storage, path, row.model_copy(update=made))
    return True
