"""The queue as people see it: who is next, what each run waits for, and when it should start."""

import heapq
from collections import deque
from collections.abc import Mapping, Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from grafting_core.spec.budget import Spend
from service.api.schemas import QueueEntry, QueueView
from service.store.admitting import Verdict, Walk
from service.store.lifecycle import LIVE
from service.store.making import Published
from service.store.models import ExperimentRow, RunRow
from service.store.queries import spend_of
from service.store.queueing import COLUMNS, Room, Waiting, in_order, room, shares, waiting


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
    """The first `limit` runs, or the one asked for, in the order in which they start if nothing overtakes.

    Those that cannot start here at all come last. What each lacks is what admission finds, which has to be
    told by the same `published` and `hold_line_seconds`.
    """
    capacity = Room(cpus, gpus)
    order = _order(session, capacity)
    free = room(session, cpus, gpus)
    shown = [index for index, run in enumerate(order) if only is None or run.id == only][:limit]
    starts = _starts(session, [run for run in order if capacity.fits(run)], Room(free.cpus, free.gpus))
    walk = Walk(session, capacity, hold_line_seconds, published)
    verdicts = {run.id: verdict for run, verdict in walk.steps()}
    walk.prepare([order[index] for index in shown])
    names = _names(session, [order[index].id for index in shown])
    entries = [
        _entry(order, index, verdicts.get(order[index].id) or walk.explain(order[index]), names, starts)
        for index in shown
    ]
    return QueueView(
        cpus=cpus,
        free_cpus=max(0, free.cpus),
        gpus=gpus,
        free_gpus=max(0, free.gpus),
        queued=len(order),
        entries=entries,
    )


def _order(session: Session, capacity: Room) -> list[Waiting]:
    lines = waiting(session)
    everybody = [run for line in lines.values() for run in line]
    able = {owner: deque(run for run in line if capacity.fits(run)) for owner, line in lines.items()}
    able = {owner: line for owner, line in able.items() if line}
    given = shares(session, capacity.cpus, capacity.gpus, able)
    return [*in_order(able, given), *(run for run in everybody if not capacity.fits(run))]


def _names(session: Session, ids: Sequence[str]) -> dict[str, str]:
    query = select(RunRow.id, ExperimentRow.name).join(RunRow.experiment).where(RunRow.id.in_(ids))
    return {row.id: row.name for row in session.execute(query)}


def _entry(
    order: Sequence[Waiting],
    index: int,
    verdict: Verdict,
    names: Mapping[str, str],
    starts: Sequence[float | None],
) -> QueueEntry:
    run = order[index]
    return QueueEntry(
        run_id=run.id,
        name=names[run.id],
        owner=run.owner,
        priority=-run.precedence,
        position=index + 1,
        behind=[ahead.id for ahead in reversed(order[max(0, index - 3) : index])],
        lacks=verdict.lacks,
        waits_for=verdict.text,
        expected_start_seconds=starts[index] if index < len(starts) else None,
    )


def _starts(session: Session, order: Sequence[Waiting], free: Room) -> list[float | None]:
    """Seconds from now, by letting the queue run dry in order; None from where durations are unknown."""
    ends = [(_left(session, run), run.cpus, run.gpus) for run in _live(session)]
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


def _live(session: Session) -> list[Waiting]:
    return [Waiting(*row) for row in session.execute(select(*COLUMNS).where(RunRow.state.in_(LIVE)))]


def _left(session: Session, run: Waiting) -> float | None:
    if run.seconds is None:
        return None
    spent: Spend = spend_of(session, run.id)
    return max(0.0, run.seconds - spent.device_seconds / run.workers)
