"""The queue as people see it: who is next, what each run waits for, and when it should start."""

import heapq
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Literal

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from grafting_core.spec.budget import Spend
from service.api.schemas import QueueEntry, QueueView
from service.store.accounts import LiveUse, accounts, live_use, usage
from service.store.bank import WAITS
from service.store.lifecycle import LIVE
from service.store.models import RunRow, now
from service.store.queries import spends_of
from service.store.queueing import COLUMNS, OWNERS, Room, Shares, Waiting, in_order, room, shares
from service.store.reserving import budget_hold, expected

FOLLOWED = 1_000
"""Places up to which the turns of all owners are followed; further behind, priority and age say enough."""
Lack = Literal["nothing", "cpus", "gpus", "quota", "budget", "another run", "back-off"]


def queue_view(session: Session, cpus: int, gpus: int, limit: int, only: str | None = None) -> QueueView:
    """The first `limit` runs, or the one asked for, as if nothing overtook anything.

    Of one that is far behind the place is told by priority and age, and no start.
    """
    order = _as_far_as(session, cpus, gpus, limit, only)
    free = room(session, cpus, gpus)
    shown = [index for index, run in enumerate(order) if only is None or run.id == only][:limit]
    starts = _starts(session, order, Room(free.cpus, free.gpus)) if shown else []
    far = _far_behind(session, only) if only is not None and not shown else None
    explained = _Explainer(session, cpus, gpus, [far[0]] if far else [order[index] for index in shown])
    entries = [explained.entry(order[index], index, _ahead(order, index), starts[index]) for index in shown]
    if far is not None:
        entries = [explained.entry(*far, [], None)]
    queued = select(func.count()).select_from(RunRow).where(RunRow.state == "QUEUED")
    return QueueView(
        cpus=cpus,
        free_cpus=max(0, free.cpus),
        gpus=gpus,
        free_gpus=max(0, free.gpus),
        queued=session.scalar(queued) or 0,
        entries=entries,
    )


def _as_far_as(session: Session, cpus: int, gpus: int, limit: int, only: str | None) -> list[Waiting]:
    """The beginning of the queue that a view needs: its first runs, or all up to the one asked for."""
    owners = [owner for (owner,) in session.execute(OWNERS)]
    ahead = in_order(session, shares(session, cpus, gpus, owners))
    if only is None:
        return list(islice(ahead, limit))
    order: list[Waiting] = []
    for run in islice(ahead, FOLLOWED):
        order.append(run)
        if run.id == only:
            break
    return order


def _far_behind(session: Session, run_id: str) -> tuple[Waiting, int] | None:
    """A waiting run, and how many are ahead of it by priority and age."""
    row = session.execute(select(*COLUMNS).where(RunRow.id == run_id, RunRow.state == "QUEUED")).first()
    if row is None:
        return None
    run = Waiting(*row)
    older = (RunRow.precedence == run.precedence) & (RunRow.id < run.id)
    ahead = select(func.count()).select_from(RunRow)
    ahead = ahead.where(RunRow.state == "QUEUED", (RunRow.precedence < run.precedence) | older)
    return run, session.scalar(ahead) or 0


def _ahead(order: Sequence[Waiting], index: int) -> list[str]:
    """The three runs before it, nearest first."""
    return [run.id for run in reversed(order[max(0, index - 3) : index])]


class _Explainer:
    """What is the same for every entry of a view."""

    def __init__(self, session: Session, cpus: int, gpus: int, shown: Sequence[Waiting]) -> None:
        self._session = session
        self._live: Sequence[LiveUse] = live_use(session)
        self._shares: Shares = shares(session, cpus, gpus, {run.owner for run in shown})
        self._room = room(session, cpus, gpus)
        ids = [run.id for run in shown]
        self._runs = {run.id: run for run in session.scalars(select(RunRow).where(RunRow.id.in_(ids)))}
        self._spends = spends_of(session, ids)
        self._accounts = accounts(session, {key for run in shown for key in run.keys})

    def entry(self, waiting_run: Waiting, index: int, behind: list[str], start: float | None) -> QueueEntry:
        run = self._runs[waiting_run.id]
        lacks, text = self._why(waiting_run, run, index)
        return QueueEntry(
            run_id=run.id,
            name=run.experiment.name,
            owner=run.owner,
            priority=-run.precedence,
            position=index + 1,
            behind=behind,
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
        want = usage(run.experiment.backbone, expected(run, self._spends.get(run.id, Spend())))
        budget = budget_hold(self._session, waiting_run, self._live, want, self._accounts)
        if budget:
            return "budget", budget
        if not self._room.fits(waiting_run):
            kind: Lack = "gpus" if waiting_run.gpus > max(0, self._room.gpus) else "cpus"
            return kind, self._room.lacks(waiting_run)
        return "nothing", "it starts in one of the next rounds" if ahead else "it starts in the next round"


def _starts(session: Session, order: Sequence[Waiting], free: Room) -> list[float | None]:
    """Seconds from now, by letting the queue run dry in order; None from where durations are unknown."""
    live = _live(session)
    spends = spends_of(session, [run.id for run in live])
    ends = [(_left(run, spends.get(run.id, Spend())), run.cpus, run.gpus) for run in live]
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


def _left(run: Waiting, spent: Spend) -> float | None:
    if run.forecast is None:
        return None
    return max(0.0, float(run.forecast["device_seconds"]) - spent.device_seconds) / run.workers
