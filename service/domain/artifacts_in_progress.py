"""Artifacts that running runs are making, and the queued runs that wait for them."""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.orm import Session

from service.db.tables import RunDependencyRow, RunRow
from service.domain.artifact_dependencies import WAITS
from service.domain.run_lifecycle import LIVE

Published = Callable[[str, str], bool]
"""(folder, key) -> whether an artifact is published there."""


class Made(NamedTuple):
    """One key that a running run needs, and makes unless it is published."""

    run_id: str
    folder: str
    key: str


class Making:
    """Artifacts in progress during one walk of the queue; a run that starts in the walk counts as running."""

    def __init__(self, session: Session, published: Published) -> None:
        self._session, self._published = session, published
        self._by_key: dict[str, list[Made]] | None = None
        self._shared: dict[str, set[str]] = {}
        """Queued run -> those of its keys that running runs need too."""
        self._started: list[str] = []
        self._known: dict[Made, bool] = {}
        self._texts: dict[frozenset[str], str | None] = {}
        """Shared keys -> text of the wait; many runs share the same keys."""

    def prepare(self, ids: Collection[str]) -> None:
        """Look up in one query which keys these queued runs share with running runs."""
        if not ids or not self._made():
            return
        under_way = select(RunRow.id).where(or_(RunRow.state.in_(LIVE), RunRow.id.in_(self._started)))
        self._look(
            ids,
            RunDependencyRow.key.in_(
                select(RunDependencyRow.key).where(RunDependencyRow.run_id.in_(under_way))
            ),
        )

    def started(self, run_id: str, waiting: Collection[str]) -> None:
        """Count a run as running: waiting runs that share a key with it will wait for it."""
        self._started.append(run_id)
        self._by_key = None
        self._texts = {}
        self._look(
            waiting,
            RunDependencyRow.key.in_(select(RunDependencyRow.key).where(RunDependencyRow.run_id == run_id)),
        )

    def _look(self, ids: Collection[str], among: ColumnElement[bool]) -> None:
        query = select(RunDependencyRow.run_id, RunDependencyRow.key).where(
            RunDependencyRow.run_id.in_(list(ids)), among
        )
        for run_id, key in self._session.execute(query):
            self._shared.setdefault(run_id, set()).add(key)

    def wait_of(self, run_id: str) -> str | None:
        """Return why a prepared queued run should wait, or None if no other run makes what it needs."""
        shared = self._shared.get(run_id)
        if not shared:
            return None
        if run_id in self._started:
            return self._text(shared, run_id)
        keys = frozenset(shared)
        if keys not in self._texts:
            self._texts[keys] = self._text(keys)
        return self._texts[keys]

    def _text(self, keys: Collection[str], but: str | None = None) -> str | None:
        made = [item for key in keys for item in self._made().get(key, ()) if item.run_id != but]
        missing = sorted(item for item in made if not self._is_there(item))
        return waiting_text(missing) if missing else None

    def _made(self) -> dict[str, list[Made]]:
        if self._by_key is None:
            self._by_key = {}
            under_way = or_(RunRow.state.in_(LIVE), RunRow.id.in_(self._started))
            query = (
                select(RunDependencyRow.run_id, RunDependencyRow.folder, RunDependencyRow.key)
                .join(RunRow)
                .where(under_way)
            )
            for row in self._session.execute(query):
                self._by_key.setdefault(row.key, []).append(Made(*row))
        return self._by_key

    def _is_there(self, made: Made) -> bool:
        if made not in self._known:
            self._known[made] = self._published(made.folder, made.key)
        return self._known[made]


def waiting_text(making: Sequence[Made]) -> str:
    """Describe what the first of these runs is making."""
    first = making[0].run_id
    theirs = [made.folder for made in making if made.run_id == first]
    what = "the evaluation"
    if "scions" in theirs:
        what = f"{theirs.count('scions')} of the scions"
    elif "models" in theirs:
        what = "the model"
    return f"{WAITS}{first}, which is making {what} that this one needs"
