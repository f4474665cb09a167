"""Which queued runs start next, and what each of the others lacks.

Admission and the page of the queue ask the same walk through the queue, so that what is explained is what is
done. A walk reads and changes nothing.
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
"""Runs of each owner that may lack devices and be overtaken by later ones; behind them nobody looks."""
HELD_AT_MOST = 500
"""Runs of each owner that are found waiting for another run before nobody looks further."""
FIRST_PAGE, PAGE = 5, 100
"""Runs that are read of each owner at first, all owners' in one query, and of one owner each time after."""


@dataclass(frozen=True)
class Verdict:
    """What follows for a queued run: it starts, ends without having started, or waits for what it lacks."""

    what: Literal["start", "stop", "fail", "wait"]
    lacks: Lack
    text: str
    want: Usage = field(default_factory=Usage)
    """What it is expected to use, of one that starts."""
    forecast: dict[str, Any] | None = None


class Walk:
    """One look at the queue, in its order."""

    def __init__(
        self, session: Session, capacity: FreeResources, hold_line_seconds: float, published: Published
    ) -> None:
        self._session, self.capacity, self._patience = session, capacity, hold_line_seconds
        self.free = room(session, capacity.cpus, capacity.gpus)
        self._live: list[LiveUse] = live_use(session)
        self._making = Making(session, published)
        self._budgets, self._foresight = Budgets(session), Foresight(session)
        self._closed: dict[AccountId, str] = {}
        """Accounts of which nobody starts in this walk, and why."""
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
        """Every run that comes into question, with what follows for it.

        Left out are those that would not start for what holds all later ones of their account as well, and
        those behind as many as are looked at. Stop listening once nothing is free.
        """
        while self._lines:
            run = self._lines.next()
            verdict = self.decide(run)
            self._note(run, verdict)
            if run.owner not in self._lines and self._looks_on(run.owner):
                page = self._page(run.owner, PAGE, run)
                self.prepare(page)
                self._lines.put(run.owner, page)
            yield run, verdict

    def _first_pages(self, owners: Sequence[str]) -> dict[str, deque[QueuedRun]]:
        """Of every owner: together those that no quota limits, each of the others by itself."""
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
        """The owner's next runs that may start, as far as their rows say."""
        left = self._shares.left(owner)
        if left is None or LAB in self._closed or ("user", owner) in self._closed:
            return deque()
        query = select(*COLUMNS).where(RunRow.state == "QUEUED", RunRow.owner == owner, due(RunRow, now()))
        query = query.where(*self.capacity.fitting(RunRow), *(column <= most for column, most in left))
        studies = [name for scope, name in self._closed if scope == "study"]
        if studies:
            query = query.where(or_(RunRow.study.is_(None), RunRow.study.not_in(studies)))
        if after is not None:
            query = query.where(tuple_(RunRow.precedence, RunRow.id) > (after.precedence, after.id))
        query = query.order_by(RunRow.precedence, RunRow.id).limit(size)
        return deque(QueuedRun(*row) for row in self._session.execute(query))

    def prepare(self, runs: Sequence[QueuedRun]) -> None:
        """Look up together what is asked of each of them."""
        self._budgets.prepare({key for run in runs for key in run.keys})
        self._making.prepare([run.id for run in runs])

    def _looks_on(self, owner: str) -> bool:
        return self._lacking[owner] < LOOKED_AT and self._held[owner] < HELD_AT_MOST

    def decide(self, run: QueuedRun) -> Verdict:
        """What follows for a run, were it its turn now. It has to be prepared."""
        try:
            return self._hold(run) or self._shortage(run) or self._readiness(run)
        except AWAY:
            raise
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a run ends that run
            return Verdict("fail", "nothing", f"it cannot be read: {type(error).__name__}: {brief(error)}")

    def _hold(self, run: QueuedRun) -> Verdict | None:
        """What keeps the run back however much is free."""
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
        want = usage_of(row.experiment.backbone, self._want(row)[0])
        return next((text for key in limited if (text := self._claim(key, want))), None)

    def _claim(self, key: AccountId, want: AccountUsage) -> str | None:
        if not self._budgets.claimed(key, self._live, want):
            return None
        text = f"the budget of {title(key)} is claimed by runs under way"
        self._claimed[key] += 1
        if self._claimed[key] >= LOOKED_AT:
            self._closed[key] = text
        return text

    def _want(self, row: RunRow) -> tuple[Usage, Usage, dict[str, Any] | None]:
        """What a run will still use, what it has used, and the forecast that says so."""
        spent, made = spend_of(self._session, row.id), self._foresight.of(row)
        return expected(row, spent, made), spent, made

    def _shortage(self, run: QueuedRun) -> Verdict | None:
        """What is not free of that which the run needs."""
        if self.free.fits(run):
            return None
        return Verdict("wait", self.free.short_of(run), self.free.lacks(run))

    def _readiness(self, run: QueuedRun) -> Verdict:
        row = self._session.get_one(RunRow, run.id)
        want, spent, made = self._want(row)
        if budget_of(row).exceeded_by(spent):
            return Verdict("stop", "budget", "the run's own budget is spent; it ends in the next round")
        return Verdict("start", "nothing", "it starts in the next round", want, made)

    def _note(self, run: QueuedRun, verdict: Verdict) -> None:
        """What the verdict means for those behind."""
        if verdict.what == "start":
            row = self._session.get_one(RunRow, run.id)
            self.free.take(run)
            self._shares.add(run)
            self._lines.reorder(run.owner)
            self._live.append(
                LiveUse(run.id, run.keys, AccountUsage(), usage_of(row.experiment.backbone, verdict.want))
            )
            self._making.started(run.id, self._lines.ids())
        elif verdict.lacks == "another run":
            self._held[run.owner] += 1
        elif verdict.lacks in ("cpus", "gpus"):
            self._lack(run)

    def _lack(self, run: QueuedRun) -> None:
        """Later ones may overtake it, unless it has waited long: then what is free is held for it."""
        self._lacking[run.owner] += 1
        if self._lacking[run.owner] >= LOOKED_AT:
            self._lines.drop(run.owner)
        if run.waited_seconds() > self._patience:
            self.free.take(run)

    def explain(self, run: QueuedRun) -> Verdict:
        """Of a run that the walk has not come by, once it is over."""
        verdict = self.decide(run)
        if verdict.what == "wait":
            return verdict
        count = max(self._lacking[run.owner], self._held[run.owner])
        text = f"{count} runs of {run.owner} are ahead of it and wait; it is looked at when one has started"
        return Verdict("wait", "cpus" if self._lacking[run.owner] >= LOOKED_AT else "another run", text)


def set_aside_text(run: QueuedRun, capacity: FreeResources) -> str:
    """Why a run cannot start here at all."""
    return f"{capacity.lacks(run, 'the lab has')}: it is set aside until the lab has as many"


def due(run: type[RunRow], at: datetime) -> ColumnElement[bool]:
    """A run that tries again is not looked at before its time."""
    return or_(run.not_before.is_(None), run.not_before <= at)
