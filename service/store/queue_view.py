"""The queue as people see it: who is next, what each run waits for, and when it should start."""

import heapq
from collections import deque
from collections.abc import Sequence
from typing import Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from grafting_core.spec.budget import Spend
from service.api.schemas import QueueEntry, QueueView
from service.store.accounts import LiveUse, live_use, usage
from service.store.bank import WAITS
from service.store.lifecycle import LIVE
from service.store.models import RunRow, now
from service.store.queries import spend_of
from service.store.queueing import COLUMNS, Room, Shares, Waiting, in_order, room, shares, waiting
from service.store.reserving import budget_hold, expected

Lack = Literal["nothing", "cpus", "gpus", "quota", "budget", "another run", "back-off"]


def queue_view(session: Session, cpus: int, gpus: int, limit: int, only: str | None = None) -> QueueView:
    """The first `limit` runs, or the one asked for, as if nothing overtook anything."""
    lines = waiting(session)
    order = in_order(lines, shares(session, cpus, gpus, lines))
    free = room(session, cpus, gpus)
    shown = [index for index, run in enumerate(order) if only is None or run.id == only][:limit]
    starts = _starts(session, order, Room(free.cpus, free.gpus))
    explained = _Explainer(session, cpus, gpus)
    entries = [explained.entry(order, index, starts[index]) for index in shown]
    return QueueView(
        cpus=cpus,
        free_cpus=max(0, free.cpus),
        gpus=gpus,
        free_gpus=max(0, free.gpus),
        queued=len(order),
        entries=entries,
    )


class _Explainer:
    """What is the same for every entry of a view."""

    def __init__(self, session: Session, cpus: int, gpus: int) -> None:
        self._session = session
        self._live: Sequence[LiveUse] = live_use(session)
        self._shares: Shares = shares(session, cpus, gpus, [])
        self._room = room(session, cpus, gpus)

    def entry(self, order: Sequence[Waiting], index: int, start: float | None) -> QueueEntry:
        waiting_run = order[index]
        run = self._session.get_one(RunRow, waiting_run.id)
        lacks, text = self._why(waiting_run, run, index)
        return QueueEntry(
            run_id=run.id,
            name=run.experiment.name,
            owner=run.owner,
            priority=-run.precedence,
            position=index + 1,
            behind=[ahead.id for ahead in reversed(order[max(0, index - 3) : index])],
            lacks=lacks,
            waits_for=text,
            expected_start_seconds=start,
        )

    def _why(self, waiting_run: Waiting, run: RunRow, ahead: int) -> tuple[Lack, str]:
        if run.not_before is not None and run.not_before > now():
            seconds = (run.not_before - now()).total_seconds()
            return "back-off", f"tries again in {seconds:.0f} s after {run.reason}"
        if (run.message or "").startswith(WAITS):
            return "another run", str(run.message)
        quota = self._shares.quota(waiting_run)
        if quota:
            return "quota", quota
        want = usage(run.experiment.backbone, expected(run, spend_of(self._session, run.id)))
        budget = budget_hold(self._session, waiting_run, self._live, want)
        if budget:
            return "budget", budget
        if not self._room.fits(waiting_run):
            kind: Lack = "gpus" if waiting_run.gpus > max(0, self._room.gpus) else "cpus"
            return kind, self._room.lacks(waiting_run)
        return "nothing", "it starts in one of the next rounds" if ahead else "it starts in the next round"


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
    if run.forecast is None:
        return None
    spent: Spend = spend_of(session, run.id)
    return max(0.0, float(run.forecast["device_seconds"]) - spent.device_seconds) / run.workers
