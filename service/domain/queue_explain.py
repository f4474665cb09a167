"""Explain the queue to people: order, what each run waits for, and its expected start."""

import heapq
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from grafting_core.specs.budget import Usage
from service.db.tables import ExperimentRow, RunRow
from service.domain.admission import Verdict, Walk
from service.domain.artifacts_in_progress import Published
from service.domain.queue_order import COLUMNS, OWNERS, FreeResources, QueuedRun, in_order, room, shares
from service.domain.run_lifecycle import LIVE
from service.domain.run_queries import spends_of
from service.schemas.runs import QueueEntry, QueueView

FOLLOWED = 300
"""Number of places for which the fair order is computed; further behind, priority and age decide."""


def queue_view(
    session: Session,
    cpus: int,
    gpus: int,
    limit: int,
    only: str | None = None,
    *,
    published: Published = lambda folder, key: False,
    hold_line_seconds: float = 600.0,
) -> QueueView:
    """Return the first `limit` queued runs, or the run `only`, in the order in which they should start.

    Runs that cannot start in this lab at all come last. `published` and `hold_line_seconds` must be those of
    admission, so that the verdicts agree with it. A run behind the first FOLLOWED gets its place by priority
    and age, the verdict that it would get behind those, and no expected start.
    """
    capacity, free = FreeResources(cpus, gpus), room(session, cpus, gpus)
    order, shown = _shown(session, capacity, limit, only)
    starts = _starts(
        session, [run for run in order if capacity.fits(run)], FreeResources(free.cpus, free.gpus)
    )
    verdicts = _explained(Walk(session, capacity, hold_line_seconds, published), [run for _, run in shown])
    names = _names(session, [run.id for _, run in shown])
    queued = select(func.count()).select_from(RunRow).where(RunRow.state == "QUEUED")
    return QueueView(
        cpus=cpus,
        free_cpus=max(0, free.cpus),
        gpus=gpus,
        free_gpus=max(0, free.gpus),
        queued=session.scalar(queued) or 0,
        entries=[
            _entry(run, index, _ahead(order, index), verdicts[run.id], names, starts) for index, run in shown
        ],
    )


def _shown(
    session: Session, capacity: FreeResources, limit: int, only: str | None
) -> tuple[list[QueuedRun], list[tuple[int, QueuedRun]]]:
    """Return the beginning of the queue (empty for a run far behind), and the runs to show with places."""
    order = _as_far_as(session, capacity, limit, only)
    shown = [(index, run) for index, run in enumerate(order) if only is None or run.id == only][:limit]
    if only is not None and not shown:
        return [], _far_behind(session, only)
    return order, shown


def _explained(walk: Walk, runs: Sequence[QueuedRun]) -> dict[str, Verdict]:
    """Return the verdict on each run, from the walk where it reaches the run."""
    ids = {run.id for run in runs if walk.capacity.fits(run)}
    verdicts = _verdicts(islice(walk.steps(), FOLLOWED), ids)
    walk.prepare(runs)
    return {run.id: verdicts.get(run.id) or walk.explain(run) for run in runs}


def _verdicts(steps: Iterator[tuple[QueuedRun, Verdict]], ids: set[str]) -> dict[str, Verdict]:
    """Return the walk's verdicts on these runs; it ends with the last of them, as nothing later changes
    it.
    """
    verdicts: dict[str, Verdict] = {}
    while ids - verdicts.keys() and (step := next(steps, None)) is not None:
        run, verdict = step
        if run.id in ids:
            verdicts[run.id] = verdict
    return verdicts


def _as_far_as(session: Session, capacity: FreeResources, limit: int, only: str | None) -> list[QueuedRun]:
    """Return the beginning of the queue: its first `limit` runs, or all up to the run `only`."""
    owners = session.scalars(OWNERS).all()
    ahead = in_order(session, shares(session, capacity.cpus, capacity.gpus, owners))
    if only is None:
        able = list(islice(ahead, limit))
        return able + _never_fitting(session, capacity, limit - len(able))
    order: list[QueuedRun] = []
    for run in islice(ahead, FOLLOWED):
        order.append(run)
        if run.id == only:
            break
    return order


def _never_fitting(session: Session, capacity: FreeResources, count: int) -> list[QueuedRun]:
    """Return up to `count` of the runs that cannot start in this lab at all."""
    beyond = (RunRow.cpus > capacity.cpus) | (RunRow.gpus > capacity.gpus)
    query = select(*COLUMNS).where(RunRow.state == "QUEUED", beyond)
    query = query.order_by(RunRow.owner, RunRow.precedence, RunRow.id).limit(count)
    return [QueuedRun(*row) for row in session.execute(query)] if count else []


def _far_behind(session: Session, run_id: str) -> list[tuple[int, QueuedRun]]:
    """Return a queued run with the number of runs ahead by priority and age; empty if it is not queued."""
    row = session.execute(select(*COLUMNS).where(RunRow.id == run_id, RunRow.state == "QUEUED")).first()
    if row is None:
        return []
    run = QueuedRun(*row)
    older = (RunRow.precedence == run.precedence) & (RunRow.id < run.id)
    ahead = select(func.count()).select_from(RunRow)
    ahead = ahead.where(RunRow.state == "QUEUED", (RunRow.precedence < run.precedence) | older)
    return [(session.scalar(ahead) or 0, run)]


def _ahead(order: Sequence[QueuedRun], index: int) -> list[str]:
    """Return the ids of the three runs before it, nearest first."""
    return [run.id for run in reversed(order[max(0, index - 3) : index])]


def _names(session: Session, ids: Sequence[str]) -> dict[str, str]:
    query = select(RunRow.id, ExperimentRow.name).join(RunRow.experiment).where(RunRow.id.in_(ids))
    return {row.id: row.name for row in session.execute(query)}


def _entry(
    run: QueuedRun,
    index: int,
    behind: list[str],
    verdict: Verdict,
    names: Mapping[str, str],
    starts: Sequence[float | None],
) -> QueueEntry:
    return QueueEntry(
        run_id=run.id,
        name=names[run.id],
        owner=run.owner,
        priority=-run.precedence,
        position=index + 1,
        behind=behind,
        lacks=verdict.lacks,
        waits_for=verdict.text,
        expected_start_seconds=starts[index] if index < len(starts) else None,
    )


def _starts(session: Session, order: Sequence[QueuedRun], free: FreeResources) -> list[float | None]:
    """Simulate the queue: seconds until each run starts, None from where durations are unknown."""
    live = _live(session)
    spends = spends_of(session, [run.id for run in live])
    ends = [(_left(run, spends.get(run.id, Usage())), run.cpus, run.gpus) for run in live]
    busy = [(left, cpus, gpus) for left, cpus, gpus in ends if left is not None]
    heapq.heapify(busy)
    starts: list[float | None] = []
    clock = 0.0
    queue = deque(order)
    while queue:
        run = queue[0]
        while not free.fits(run) and busy:
            end, cpus, gpus = heapq.heappop(busy)
            clock, free.cpus, free.gpus = max(clock, end), free.cpus + cpus, free.gpus + gpus
        if not free.fits(run):
            return starts + [None] * len(queue)
        starts.append(clock)
        queue.popleft()
        free.take(run)
        if run.seconds is not None:
            heapq.heappush(busy, (clock + run.seconds, run.cpus, run.gpus))
    return starts


def _live(session: Session) -> list[QueuedRun]:
    return [QueuedRun(*row) for row in session.execute(select(*COLUMNS).where(RunRow.state.in_(LIVE)))]


def _left(run: QueuedRun, spent: Usage) -> float | None:
    if run.seconds is None:
        return None
    return max(0.0, run.seconds - spent.device_seconds / run.devices)
