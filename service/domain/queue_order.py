"""The order of the queue: priority first, then whose turn it is, then age.

Priorities are never inverted: age decides among equals, and lets a run that has waited long hold back
smaller ones of its own and lower priorities, so that a gang is not overtaken for ever.
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
"""Steps through the index from one owner to the next, however many runs each has waiting."""
PIECE = 8
"""Runs of each owner that are read first, all owners' in one query; then twice as many of one each time."""


@dataclass
class FreeResources:
    """Devices that nobody has."""

    cpus: int
    gpus: int

    def fits(self, run: "QueuedRun") -> bool:
        """A gang starts whole or not at all."""
        return run.cpus <= self.cpus and (not run.gpus or run.gpus <= self.gpus)

    def fitting(self, run: type[RunRow]) -> list[ColumnElement[bool]]:
        """The same as a condition on the table, or on an alias of it."""
        return [run.cpus <= self.cpus, run.gpus <= self.gpus]

    def take(self, run: "QueuedRun") -> None:
        """Also to hold devices free for a run that waits: what it lacks goes below zero."""
        self.cpus, self.gpus = self.cpus - run.cpus, self.gpus - run.gpus

    def short_of(self, run: "QueuedRun") -> Literal["cpus", "gpus"]:
        """The first kind that is short."""
        return "gpus" if run.gpus > max(0, self.gpus) else "cpus"

    def lacks(self, run: "QueuedRun", there: str = "") -> str:
        """Of the first kind that is short: `it asks for 4 CPUs and 2 are free`, or and what `there` says."""
        asked, kind, left = (run.gpus, "GPUs", self.gpus)
        if self.short_of(run) == "cpus":
            asked, kind, left = run.cpus, "CPUs", self.cpus
        left = max(0, left)
        return f"it asks for {asked} {kind} and {f'{there} {left}' if there else f'{left} are free'}"


@dataclass(frozen=True)
class QueuedRun:
    """What the queue knows of a run."""

    id: str
    owner: str
    study: str | None
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
        """Wall-clock that it is expected to take, or None where nobody knows."""
        seconds = self.forecast.get("device_seconds") if isinstance(self.forecast, dict) else None
        return seconds / self.devices if isinstance(seconds, int | float) else None

    @property
    def devices(self) -> int:
        """What its device-seconds count: all its GPUs, or its workers where they have none."""
        return max(self.workers, self.gpus)

    @property
    def keys(self) -> tuple[AccountId, ...]:
        return keys_of(self.owner, self.study)

    def waited_seconds(self) -> float:
        return (now() - self.created_at).total_seconds()


COLUMNS = tuple(getattr(RunRow, name) for name in QueuedRun.__dataclass_fields__)


def waiting(session: Session) -> dict[str, deque[QueuedRun]]:
    """All, by owner, in the order each would have them started."""
    query = select(*COLUMNS).where(RunRow.state == "QUEUED")
    lines: dict[str, deque[QueuedRun]] = {}
    for row in session.execute(query.order_by(RunRow.owner, RunRow.precedence, RunRow.id)):
        lines.setdefault(row.owner, deque()).append(QueuedRun(*row))
    return lines


Fulfils = Callable[[type[RunRow]], Sequence[ColumnElement[bool]]]
"""Conditions on a run, as columns of the table or of an alias of it."""


def first_of_each_owner(session: Session, size: int, fulfils: Fulfils) -> dict[str, deque[QueuedRun]]:
    """The first `size` waiting runs of every owner that fulfil the conditions, in order.

    One query, which steps through the index from each run to the next of its owner: it reads what it
    returns, however many wait behind.
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
    """What each user has of the cluster now; ties go to who has used least of late."""

    cpus: int
    gpus: int
    running: dict[str, float] = field(default_factory=dict)
    counts: dict[str, list[int]] = field(default_factory=dict)
    accounts: Mapping[AccountId, AccountRow] = field(default_factory=dict)

    def add(self, run: QueuedRun) -> None:
        """Dominant share: of whichever kind of device the user has more of."""
        count = self.counts.setdefault(run.owner, [0, 0, 0])
        for index, amount in enumerate((1, run.cpus, run.gpus)):
            count[index] += amount
        self.running[run.owner] = max(count[1] / max(1, self.cpus), count[2] / max(1, self.gpus))

    def of(self, owner: str) -> tuple[float, float]:
        return self.running.get(owner, 0.0), recent_seconds(self.accounts.get(("user", owner)))

    def left(self, owner: str) -> list[tuple[Any, int]] | None:
        """Column of a run -> the most that quotas leave its owner; None where they leave no run at all."""
        account = self.accounts.get(("user", owner))
        if account is None:
            return []
        runs, cpus, gpus = self.counts.get(owner, [0, 0, 0])
        if account.max_running is not None and runs >= account.max_running:
            return None
        limits = ((RunRow.cpus, account.max_cpus, cpus), (RunRow.gpus, account.max_gpus, gpus))
        return [(column, max(0, most - used)) for column, most, used in limits if most is not None]

    def quota(self, run: QueuedRun) -> str | None:
        """Which of the user's quotas this run would exceed."""
        account = self.accounts.get(("user", run.owner))
        if account is None:
            return None
        limits = (account.max_running, account.max_cpus, account.max_gpus)
        has = self.counts.get(run.owner, [0, 0, 0])
        kinds = zip(("runs", "CPUs", "GPUs"), limits, has, (1, run.cpus, run.gpus), strict=True)
        for kind, limit, used, asked in kinds:
            if limit is not None and asked and used + asked > limit:
                return f"{run.owner} may use {limit} {kind} at a time and has {used}"
        return None


def shares(session: Session, cpus: int, gpus: int, owners: Iterable[str]) -> FairShares:
    """Of the runs under way."""
    live = session.execute(select(*COLUMNS).where(RunRow.state.in_(LIVE))).all()
    users = {("user", owner) for owner in owners} | {("user", row.owner) for row in live}
    found = FairShares(cpus, gpus, accounts=accounts(session, users))
    for row in live:
        found.add(QueuedRun(*row))
    return found


def room(session: Session, cpus: int, gpus: int) -> FreeResources:
    """What live runs leave."""
    asked = select(func.coalesce(func.sum(RunRow.cpus), 0), func.coalesce(func.sum(RunRow.gpus), 0))
    used: Any = session.execute(asked.where(RunRow.state.in_(LIVE))).one()
    return FreeResources(cpus - int(used[0]), gpus - int(used[1]))


class Lines:
    """Waiting runs of several owners, taken by priority, then the owner's share, recent use, and age.

    A heap of the first run of each line. Of all that it compares, only what one owner has changes at a time:
    then that owner's entry is made anew, and the one before it is passed over.
    """

    def __init__(self, given: FairShares) -> None:
        self._given = given
        self._lines: dict[str, deque[QueuedRun]] = {}
        self._entries: dict[str, int] = {}
        """Owner -> number of its valid entry."""
        self._heap: list[tuple[int, float, float, str, int, str]] = []
        self._recent: dict[str, float] = {}
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._lines)

    def __contains__(self, owner: str) -> bool:
        return owner in self._lines

    def put(self, owner: str, line: deque[QueuedRun]) -> None:
        """An owner's waiting runs, in order; nothing where there are none."""
        if line:
            self._lines[owner] = line
            self.reorder(owner)

    def drop(self, owner: str) -> None:
        """Take none of an owner's runs any more."""
        self._lines.pop(owner, None)

    def reorder(self, owner: str) -> None:
        """Place an owner's first run anew, after its share has changed."""
        if owner not in self._lines:
            return
        if owner not in self._recent:
            self._recent[owner] = self._given.of(owner)[1]
        head, share = self._lines[owner][0], self._given.running.get(owner, 0.0)
        self._entries[owner] = number = next(self._numbers)
        heapq.heappush(self._heap, (head.precedence, share, self._recent[owner], head.id, number, owner))

    def next(self) -> QueuedRun:
        """The run whose turn it is. There must be one."""
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
        """Of all runs in the lines."""
        return [run.id for line in self._lines.values() for run in line]


def in_order(session: Session, given: FairShares) -> Iterator[QueuedRun]:
    """The runs that can start here at all, as if every one fitted now, read as far as it is asked for.

    `given` is used up. The order is that of `Lines`: of all that it compares, only what the owner of the run
    that was taken has of the cluster changes, so the others keep their places in a heap.
    """
    capacity = FreeResources(given.cpus, given.gpus)
    begun = first_of_each_owner(session, PIECE, capacity.fitting)
    lines = {owner: Line(session, runs, capacity.fitting) for owner, runs in begun.items()}
    firsts = {owner: line.next() for owner, line in lines.items()}
    recent = {owner: given.of(owner)[1] for owner in lines}

    def place(run: QueuedRun) -> tuple[int, float, float, str, QueuedRun]:
        return run.precedence, given.running.get(run.owner, 0.0), recent[run.owner], run.id, run

    heap = [place(run) for run in firsts.values()]
    heapq.heapify(heap)
    while heap:
        run = heap[0][-1]
        given.add(run)
        following = lines[run.owner].next_or_none()
        if following is None:
            heapq.heappop(heap)
        else:
            heapq.heapreplace(heap, place(following))
        yield run


class Line:
    """One owner's waiting runs that fulfil the conditions, in order: `begun`, then pieces that grow."""

    def __init__(self, session: Session, begun: deque[QueuedRun], fulfils: Fulfils) -> None:
        self._session, self._fulfils, self._ahead, self._last = session, fulfils, begun, begun[-1]
        self._size = PIECE * 2 if len(begun) == PIECE else 0

    def next(self) -> QueuedRun:
        """Raises IndexError at the end."""
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
        found = [QueuedRun(*row) for row in self._session.execute(query)]
        self._size = self._size * 2 if len(found) == self._size else 0
        self._last = found[-1] if found else last
        return found
