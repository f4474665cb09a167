"""Decide which queued runs start next, and what each of the others lacks.

Admission and the queue page use the same walk through the queue, so the page explains what admission does.
A walk only reads.
"""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import ColumnElement, or_, select, tuple_
from sqlalchemy.orm import Session

from grafting_core.specs.budget import Budget, Usage
from service.db.tables import RunRow, now
from service.domain.artifacts_in_progress import Making, Published
from service.domain.budget_reservation import Budgets, expected
from service.domain.budgets import LAB, AccountId, AccountUsage, LiveUse, budget_of, live_use, title, usage_of
from service.domain.forecast import Foresight
from service.domain.pretraining import backbone_of
from service.domain.queue_order import (
    COLUMNS,
    OWNERS,
    FreeResources,
    Lines,
    QueuedRun,
    first_of_each_owner,
    room,
    shares,
)
from service.domain.run_queries import spend_of
from service.log_once import AWAY, brief

Lack = Literal["nothing", "cpus", "gpus", "quota", "budget", "another run", "back-off"]
LOOKED_AT = 20
"""Runs per owner that may lack devices and be overtaken by later ones; runs behind them are not examined."""
HELD_AT_MOST = 500
"""Runs per owner that may wait for another run; runs behind them are not examined."""
FIRST_PAGE, PAGE = 5, 100
"""Runs read per owner at first (all owners in one query), then per owner and query."""


@dataclass(frozen=True)
class Verdict:
    """Decision on a queued run: it starts, ends without starting, or waits for what it lacks."""

    what: Literal["start", "stop", "fail", "wait"]
    lacks: Lack
    text: str
    want: Usage = field(default_factory=Usage)
    """Expected use of a run that starts."""
    forecast: dict[str, Any] | None = None


class Walk:
    """One pass through the queue, in its order."""

    def __init__(
        self, session: Session, capacity: FreeResources, hold_line_seconds: float, published: Published
    ) -> None:
        self._session, self.capacity, self._patience = session, capacity, hold_line_seconds
        self.free = room(session, capacity.cpus, capacity.gpus)
        self._live: list[LiveUse] = live_use(session)
        self._making = Making(session, published)
        self._budgets, self._foresight = Budgets(session), Foresight(session)
        self._closed: dict[AccountId, str] = {}
        """Accounts of which no run can start in this walk -> the reason."""
        self._lacking, self._held, self._claimed = Counter[str](), Counter[str](), Counter[AccountId]()
        owners = session.scalars(OWNERS).all()
        self._shares = shares(session, capacity.cpus, capacity.gpus, owners)
        self._budgets.prepare({LAB, *(("user", owner) for owner in owners)})
        self._lines = Lines(self._shares)
        firsts = self._first_pages(owners)
        self.prepare([run for page in firsts.values() for run in page])
        for owner, page in firsts.items():
            self._lines.put(owner, page)

    def steps(self) -> Iterator[tuple[QueuedRun, Verdict]]:
        """Yield every run that may start, with its verdict.

        Runs are left out if their account is closed for this walk, and if more than the limits above are
        ahead of them. The caller should stop iterating once nothing is free.
        """
        while self._lines:
            run = self._lines.next()
            verdict = self.decide(run)
            self._note(run, verdict)
            if run.owner not in self._lines and self._reads_on(run.owner):
                page = self._page(run.owner, PAGE, run)
                self.prepare(page)
                self._lines.put(run.owner, page)
            yield run, verdict

    def _first_pages(self, owners: Sequence[str]) -> dict[str, deque[QueuedRun]]:
        """Read the first runs of every owner: in one query, except for owners that a quota limits."""
        at = now()
        free = first_of_each_owner(
            self._session, FIRST_PAGE, lambda run: [due(run, at), *self.capacity.fitting(run)]
        )
        limited = {owner for owner in owners if self._shares.left(owner) != []}
        return {
            owner: self._page(owner, FIRST_PAGE) if owner in limited else free.get(owner, deque())
            for owner in owners
        }

    def _page(self, owner: str, size: int, after: QueuedRun | None = None) -> deque[QueuedRun]:
        """Read the owner's next runs that may start according to their rows."""
        left = self._shares.left(owner)
        if left is None or LAB in self._closed or ("user", owner) in self._closed:
            return deque()
        query = select(*COLUMNS).where(RunRow.state == "QUEUED", RunRow.owner == owner, due(RunRow, now()))
        query = query.where(*self.capacity.fitting(RunRow), *(column <= most for column, most in left))
        tags = [name for scope, name in self._closed if scope == "tag"]
        if tags:
            query = query.where(or_(RunRow.tag.is_(None), RunRow.tag.not_in(tags)))
        if after is not None:
            query = query.where(tuple_(RunRow.precedence, RunRow.id) > (after.precedence, after.id))
        query = query.order_by(RunRow.precedence, RunRow.id).limit(size)
        return deque(QueuedRun(*row) for row in self._session.execute(query))

    def prepare(self, runs: Sequence[QueuedRun]) -> None:
        """Load the budgets and shared artifacts of these runs in bulk; `decide` needs them."""
        self._budgets.prepare({key for run in runs for key in run.keys})
        self._making.prepare([run.id for run in runs])

    def _reads_on(self, owner: str) -> bool:
        return self._lacking[owner] < LOOKED_AT and self._held[owner] < HELD_AT_MOST

    def decide(self, run: QueuedRun) -> Verdict:
        """Return the verdict on a run if it were next. It must have been prepared."""
        try:
            return self._hold(run) or self._shortage(run) or self._readiness(run)
        except AWAY:
            raise
        except Exception as error:  # noqa: BLE001 - an error caused by one run ends only that run
            return Verdict("fail", "nothing", f"it cannot be read: {type(error).__name__}: {brief(error)}")

    def _hold(self, run: QueuedRun) -> Verdict | None:
        """Return a wait verdict if the run could not start even with everything free."""
        if run.not_before is not None and run.not_before > now():
            seconds = (run.not_before - now()).total_seconds()
            return Verdict("wait", "back-off", f"tries again in {seconds:.0f} s after {run.reason}")
        if not self.capacity.fits(run):
            return Verdict("wait", self.capacity.short_of(run), set_aside_text(run, self.capacity))
        quota = self._shares.quota(run)
        if quota:
            return Verdict("wait", "quota", quota)
        budget = self._budget_hold(run)
        if budget:
            return Verdict("wait", "budget", budget)
        other = self._making.wait_of(run.id)
        return Verdict("wait", "another run", other) if other else None

    def _budget_hold(self, run: QueuedRun) -> str | None:
        for key in run.keys:
            if key in self._closed:
                return self._closed[key]
            spent = self._budgets.spent(key)
            if spent:
                self._closed[key] = spent
                return spent
        limited = [key for key in run.keys if self._budgets.limits(key) != Budget()]
        if not limited:
            return None
        row = self._session.get_one(RunRow, run.id)
        want = usage_of(backbone_of(row.experiment), self._want(row)[0])
        return next((text for key in limited if (text := self._claim(key, want))), None)

    def _claim(self, key: AccountId, want: AccountUsage) -> str | None:
        if not self._budgets.claimed(key, self._live, want):
            return None
        text = f"the budget of {title(key)} is reserved by running runs"
        self._claimed[key] += 1
        if self._claimed[key] >= LOOKED_AT:
            self._closed[key] = text
        return text

    def _want(self, row: RunRow) -> tuple[Usage, Usage, dict[str, Any] | None]:
        """Return the run's expected use, its use so far, and the forecast behind the first."""
        spent, forecast = spend_of(self._session, row.id), self._foresight.of(row)
        return expected(row, spent, forecast), spent, forecast

    def _shortage(self, run: QueuedRun) -> Verdict | None:
        """Return a wait verdict if the free devices are too few."""
        if self.free.fits(run):
            return None
        return Verdict("wait", self.free.short_of(run), self.free.lacks(run))

    def _readiness(self, run: QueuedRun) -> Verdict:
        row = self._session.get_one(RunRow, run.id)
        want, spent, forecast = self._want(row)
        if budget_of(row).exceeded_by(spent):
            return Verdict("stop", "budget", "the run's own budget is spent; it ends in the next round")
        return Verdict("start", "nothing", "it starts in the next round", want, forecast)

    def _note(self, run: QueuedRun, verdict: Verdict) -> None:
        """Update the state of the walk for the runs behind this one."""
        if verdict.what == "start":
            row = self._session.get_one(RunRow, run.id)
            self.free.take(run)
            self._shares.add(run)
            self._lines.reorder(run.owner)
            self._live.append(
                LiveUse(run.id, run.keys, AccountUsage(), usage_of(backbone_of(row.experiment), verdict.want))
            )
            self._making.started(run.id, self._lines.ids())
        elif verdict.lacks == "another run":
            self._held[run.owner] += 1
        elif verdict.lacks in ("cpus", "gpus"):
            self._lack(run)

    def _lack(self, run: QueuedRun) -> None:
        """Let later runs overtake it; after a long wait, hold the free devices for it instead."""
        self._lacking[run.owner] += 1
        if self._lacking[run.owner] >= LOOKED_AT:
            self._lines.drop(run.owner)
        if run.waited_seconds() > self._patience:
            self.free.take(run)

    def explain(self, run: QueuedRun) -> Verdict:
        """Return the verdict on a run that the finished walk did not reach."""
        verdict = self.decide(run)
        if verdict.what == "wait":
            return verdict
        count = max(self._lacking[run.owner], self._held[run.owner])
        text = f"{count} runs of {run.owner} are ahead of it and wait; it is considered once one has started"
        return Verdict("wait", "cpus" if self._lacking[run.owner] >= LOOKED_AT else "another run", text)


def set_aside_text(run: QueuedRun, capacity: FreeResources) -> str:
    """Say why a run cannot start in this lab at all."""
    return f"{capacity.lacks(run, 'the lab has')}: it waits until the lab has that many"


def due(run: type[RunRow], at: datetime) -> ColumnElement[bool]:
    """Condition: the run's back-off before the next attempt is over."""
    return or_(run.not_before.is_(None), run.not_before <= at)
