"""Order of the queue: priority first, then the owner's fair share, then age.

Priorities are never inverted: age decides among equals. A run that has waited long holds back smaller runs
of its own and lower priorities, so that a large run is not overtaken forever.
"""

import heapq
import itertools
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import ColumnElement, Select, func, literal, select, text, tuple_
from sqlalchemy.orm import Session, aliased

from service.db.tables import AccountRow, RunRow, now
from service.domain.budgets import AccountId, accounts, keys_of, recent_seconds
from service.domain.run_lifecycle import LIVE

OWNERS = text(
    "WITH RECURSIVE waiting(owner) AS ("
    "SELECT min(owner) FROM runs WHERE state = 'QUEUED' UNION ALL "
    "SELECT (SELECT min(owner) FROM runs WHERE state = 'QUEUED' AND owner > waiting.owner) "
    "FROM waiting WHERE waiting.owner IS NOT NULL) "
    "SELECT owner FROM waiting WHERE owner IS NOT NULL"
)
"""Query that steps through the index from owner to owner, whatever the number of runs of each."""
PIECE = 8
"""Number of runs read of each owner at first, all owners in one query; it doubles with every further read."""


@dataclass
class FreeResources:
    """Free devices of the cluster."""

    cpus: int
    gpus: int

    def fits(self, run: "QueuedRun") -> bool:
        """Check whether all workers of the run fit at once."""
        return run.cpus <= self.cpus and (not run.gpus or run.gpus <= self.gpus)

    def fitting(self, run: type[RunRow]) -> list[ColumnElement[bool]]:
        """Return `fits` as conditions on the table, or on an alias of it."""
        return [run.cpus <= self.cpus, run.gpus <= self.gpus]

    def take(self, run: "QueuedRun") -> None:
        """Subtract a run's devices; also used to hold devices for a waiting run, so values may become
        negative.
        """
        self.cpus, self.gpus = self.cpus - run.cpus, self.gpus - run.gpus

    def short_of(self, run: "QueuedRun") -> Literal["cpus", "gpus"]:
        """Return the first kind of device of which there are too few."""
        return "gpus" if run.gpus > max(0, self.gpus) else "cpus"

    def lacks(self, run: "QueuedRun", there: str = "") -> str:
        """Describe the shortage, such as `it asks for 4 CPUs and 2 are free`; `there` replaces the word
        `free`.
        """
        needed, kind, left = (run.gpus, "GPUs", self.gpus)
        if self.short_of(run) == "cpus":
            needed, kind, left = run.cpus, "CPUs", self.cpus
        left = max(0, left)
        return f"it asks for {needed} {kind} and {f'{there} {left}' if there else f'{left} are free'}"


@dataclass(frozen=True)
class QueuedRun:
    """Columns of a run that the queue needs."""

    id: str
    owner: str
    tag: str | None
    precedence: int
    cpus: int
    gpus: int
    created_at: datetime
    not_before: datetime | None
    workers: int
    forecast: dict[str, Any] | None
    reason: str | None
    message: str | None

    @property
    def seconds(self) -> float | None:
        """Expected wall-clock duration, or None if unknown."""
        seconds = self.forecast.get("device_seconds") if isinstance(self.forecast, dict) else None
        return seconds / self.devices if isinstance(seconds, int | float) else None

    @property
    def devices(self) -> int:
        """Devices that its device-seconds count: all its GPUs, or its workers if they have no GPU."""
        return max(self.workers, self.gpus)

    @property
    def keys(self) -> tuple[AccountId, ...]:
        return keys_of(self.owner, self.tag)

    def waited_seconds(self) -> float:
        return (now() - self.created_at).total_seconds()


COLUMNS = tuple(getattr(RunRow, name) for name in QueuedRun.__dataclass_fields__)


def waiting(session: Session) -> dict[str, deque[QueuedRun]]:
    """Return all queued runs by owner, in the order in which each owner's would start."""
    query = select(*COLUMNS).where(RunRow.state == "QUEUED")
    lines: dict[str, deque[QueuedRun]] = {}
    for row in session.execute(query.order_by(RunRow.owner, RunRow.precedence, RunRow.id)):
        lines.setdefault(row.owner, deque()).append(QueuedRun(*row))
    return lines


Fulfils = Callable[[type[RunRow]], Sequence[ColumnElement[bool]]]
"""Maps the table, or an alias of it, to conditions on its runs."""


def first_of_each_owner(session: Session, size: int, fulfils: Fulfils) -> dict[str, deque[QueuedRun]]:
    """Return the first `size` queued runs of every owner that fulfil the conditions, in order.

    One query steps through the index from each run to the next of its owner, so its cost does not depend on
    the length of the queue.
    """
    owners = OWNERS.columns(RunRow.owner).cte("owners")
    head, before, after = aliased(RunRow), aliased(RunRow), aliased(RunRow)
    first = _first(head, fulfils).where(head.owner == owners.c.owner).scalar_subquery()
    places = select(first.label("id"), literal(1).label("place")).select_from(owners)
    steps = places.cte("steps", recursive=True)
    behind = tuple_(after.precedence, after.id) > tuple_(before.precedence, before.id)
    following = _first(after, fulfils).where(after.owner == before.owner, behind).correlate(before)
    steps = steps.union_all(
        select(following.scalar_subquery(), steps.c.place + 1)
        .join(before, before.id == steps.c.id)
        .where(steps.c.place < size)
    )
    query = select(*COLUMNS).where(RunRow.id.in_(select(steps.c.id)))
    lines = defaultdict[str, deque[QueuedRun]](deque)
    for row in session.execute(query.order_by(RunRow.owner, RunRow.precedence, RunRow.id)):
        lines[row.owner].append(QueuedRun(*row))
    return lines


def _first(run: type[RunRow], fulfils: Fulfils) -> Select[str]:
    waiting = select(run.id).where(run.state == "QUEUED", *fulfils(run))
    return waiting.order_by(run.precedence, run.id).limit(1)


@dataclass
class FairShares:
    """Current share of the cluster by user; ties go to the user with the least recent use."""

    cpus: int
    gpus: int
    running: dict[str, float] = field(default_factory=dict)
    counts: dict[str, list[int]] = field(default_factory=dict)
    accounts: Mapping[AccountId, AccountRow] = field(default_factory=dict)

    def add(self, run: QueuedRun) -> None:
        """Add a run; a user's share is the larger of the shares of CPUs and GPUs (dominant share)."""
        count = self.counts.setdefault(run.owner, [0, 0, 0])
        for index, amount in enumerate((1, run.cpus, run.gpus)):
            count[index] += amount
        self.running[run.owner] = max(count[1] / max(1, self.cpus), count[2] / max(1, self.gpus))

    def of(self, owner: str) -> tuple[float, float]:
        return self.running.get(owner, 0.0), recent_seconds(self.accounts.get(("user", owner)))

    def left(self, owner: str) -> list[tuple[Any, int]] | None:
        """Return what the quotas leave the owner by column of a run; None if they leave no run at all."""
        account = self.accounts.get(("user", owner))
        if account is None:
            return []
        runs, cpus, gpus = self.counts.get(owner, [0, 0, 0])
        if account.max_running is not None and runs >= account.max_running:
            return None
        limits = ((RunRow.cpus, account.max_cpus, cpus), (RunRow.gpus, account.max_gpus, gpus))
        return [(column, max(0, most - used)) for column, most, used in limits if most is not None]

    def quota(self, run: QueuedRun) -> str | None:
        """Return the quota that this run would exceed, in words, or None."""
        account = self.accounts.get(("user", run.owner))
        if account is None:
            return None
        limits = (account.max_running, account.max_cpus, account.max_gpus)
        has = self.counts.get(run.owner, [0, 0, 0])
        kinds = zip(("runs", "CPUs", "GPUs"), limits, has, (1, run.cpus, run.gpus), strict=True)
        for kind, limit, used, needed in kinds:
            if limit is not None and needed and used + needed > limit:
                return f"{run.owner} may use {limit} {kind} at a time and has {used}"
        return None


def shares(session: Session, cpus: int, gpus: int, owners: Iterable[str]) -> FairShares:
    """Return the shares of the running runs."""
    live = session.execute(select(*COLUMNS).where(RunRow.state.in_(LIVE))).all()
    users = {("user", owner) for owner in owners} | {("user", row.owner) for row in live}
    current = FairShares(cpus, gpus, accounts=accounts(session, users))
    for row in live:
        current.add(QueuedRun(*row))
    return current


def room(session: Session, cpus: int, gpus: int) -> FreeResources:
    """Return the devices that live runs leave free."""
    sums = select(func.coalesce(func.sum(RunRow.cpus), 0), func.coalesce(func.sum(RunRow.gpus), 0))
    used: Any = session.execute(sums.where(RunRow.state.in_(LIVE))).one()
    return FreeResources(cpus - int(used[0]), gpus - int(used[1]))


class Lines:
    """Queued runs of several owners, taken by priority, then the owner's share, recent use, and age.

    It is a heap of the first run of each owner. Taking a run changes only the share of its owner: that
    owner's entry is pushed again, and the outdated one is skipped when popped.
    """

    def __init__(self, fair_shares: FairShares) -> None:
        self._shares = fair_shares
        self._lines: dict[str, deque[QueuedRun]] = {}
        self._entries: dict[str, int] = {}
        """Owner -> number of its valid heap entry."""
        self._heap: list[tuple[int, float, float, str, int, str]] = []
        self._recent: dict[str, float] = {}
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._lines)

    def __contains__(self, owner: str) -> bool:
        return owner in self._lines

    def put(self, owner: str, line: deque[QueuedRun]) -> None:
        """Add an owner's queued runs, in order; an empty line is ignored."""
        if line:
            self._lines[owner] = line
            self.reorder(owner)

    def drop(self, owner: str) -> None:
        """Take no more runs of this owner."""
        self._lines.pop(owner, None)

    def reorder(self, owner: str) -> None:
        """Push the owner's first run again after its share has changed."""
        if owner not in self._lines:
            return
        if owner not in self._recent:
            self._recent[owner] = self._shares.of(owner)[1]
        head, share = self._lines[owner][0], self._shares.running.get(owner, 0.0)
        self._entries[owner] = number = next(self._numbers)
        heapq.heappush(self._heap, (head.precedence, share, self._recent[owner], head.id, number, owner))

    def next(self) -> QueuedRun:
        """Take the next run. There must be one."""
        while True:
            *_, number, owner = heapq.heappop(self._heap)
            if owner in self._lines and self._entries[owner] == number:
                break
        run = self._lines[owner].popleft()
        if self._lines[owner]:
            self.reorder(owner)
        else:
            del self._lines[owner]
        return run

    def ids(self) -> list[str]:
        """Return the ids of all runs in the lines."""
        return [run.id for line in self._lines.values() for run in line]


def in_order(session: Session, fair_shares: FairShares) -> Iterator[QueuedRun]:
    """Yield the runs that can start in this lab at all, in order, as if each fitted now; reads lazily.

    `fair_shares` is modified. The order is that of `Lines`: taking a run changes only its owner's share,
    so the other owners keep their places in a heap.
    """
    capacity = FreeResources(fair_shares.cpus, fair_shares.gpus)
    begun = first_of_each_owner(session, PIECE, capacity.fitting)
    lines = {owner: Line(session, runs, capacity.fitting) for owner, runs in begun.items()}
    firsts = {owner: line.next() for owner, line in lines.items()}
    recent = {owner: fair_shares.of(owner)[1] for owner in lines}

    def place(run: QueuedRun) -> tuple[int, float, float, str, QueuedRun]:
        return run.precedence, fair_shares.running.get(run.owner, 0.0), recent[run.owner], run.id, run

    heap = [place(run) for run in firsts.values()]
    heapq.heapify(heap)
    while heap:
        run = heap[0][-1]
        fair_shares.add(run)
        following = lines[run.owner].next_or_none()
        if following is None:
            heapq.heappop(heap)
        else:
            heapq.heapreplace(heap, place(following))
        yield run


class Line:
    """One owner's queued runs that fulfil the conditions, in order: `begun`, then read in growing pieces."""

    def __init__(self, session: Session, begun: deque[QueuedRun], fulfils: Fulfils) -> None:
        self._session, self._fulfils, self._ahead, self._last = session, fulfils, begun, begun[-1]
        self._size = PIECE * 2 if len(begun) == PIECE else 0

    def next(self) -> QueuedRun:
        """Return the next run. Raises IndexError at the end."""
        if not self._ahead and self._size:
            self._ahead.extend(self._read())
        return self._ahead.popleft()

    def next_or_none(self) -> QueuedRun | None:
        try:
            return self.next()
        except IndexError:
            return None

    def _read(self) -> list[QueuedRun]:
        last = self._last
        behind = tuple_(RunRow.precedence, RunRow.id) > tuple_(last.precedence, last.id)
        query = select(*COLUMNS).where(RunRow.state == "QUEUED", RunRow.owner == last.owner, behind)
        query = query.where(*self._fulfils(RunRow)).order_by(RunRow.precedence, RunRow.id).limit(self._size)
        runs = [QueuedRun(*row) for row in self._session.execute(query)]
        self._size = self._size * 2 if len(runs) == self._size else 0
        self._last = runs[-1] if runs else last
        return runs
