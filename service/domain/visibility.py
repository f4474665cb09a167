"""Hide other users' runs in answers to readers who see only their own runs."""

import json
import re
from collections.abc import Collection, Iterable
from contextvars import ContextVar
from typing import Any, TypeVar

from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.orm import Session

from grafting_core.specs.plugins import hidden
from service.db.tables import RunRow
from service.domain.artifact_dependencies import WAITS
from service.schemas.bank import ScionView
from service.schemas.leaderboard import FirstMade
from service.schemas.runs import QueueView, RunEvent
from workers.contract import StageDone, StageReport

M = TypeVar("M", bound=BaseModel)
ANOTHERS = "another's"
"""Replacement for the id of a run, or for a private name, that the reader does not see."""
_HIDDEN_RUNS: ContextVar[frozenset[str]] = ContextVar("hidden runs", default=frozenset())
"""Runs that register something private which the reader may not know of."""
NAMING = frozenset({"backbone", "dataset", "feature_network"})
"""Fields whose value is a registered name, or an object with the field `name`."""
AWAITED = re.compile(f"^{WAITS}([0-9a-z]+)")


def hide_runs(run_ids: frozenset[str]) -> None:
    """Hide these runs from the rest of this context."""
    _HIDDEN_RUNS.set(run_ids)


def hidden_runs() -> frozenset[str]:
    """Return the runs that are hidden in this context."""
    return _HIDDEN_RUNS.get()


def without_private_names(view: M) -> M:
    """Replace names of private things that the reader does not see."""
    names = {name for _, name in hidden()}
    if not names:
        return view
    document = view.model_dump(mode="json")
    replaced = _replaced(document, names)
    return view if replaced == document else type(view).model_validate_json(json.dumps(replaced))


def _replaced(value: Any, names: Collection[str], naming: bool = False) -> Any:
    """Replace names in fields that hold names (`naming`), and in names of metrics wherever they are."""
    if isinstance(value, dict):
        return {
            _metric(key, names): _replaced(each, names, key in NAMING or (naming and key == "name"))
            for key, each in value.items()
        }
    if isinstance(value, list):
        return [_replaced(each, names, naming) for each in value]
    if not isinstance(value, str):
        return value
    return ANOTHERS if naming and value in names else _metric(value, names)


def _metric(text: str, names: Collection[str]) -> str:
    """Replace a feature network's name in the name of a metric, such as `fid1k/NAME`."""
    for name in names:
        text = re.sub(rf"(?<=[a-z0-9_]/){re.escape(name)}(?=$|/)", ANOTHERS, text)
    return text


def shown_to(session: Session, owner: str | None, run_ids: Iterable[str]) -> set[str]:
    """Return those of the runs that a reader of this owner's runs, or all (None), sees."""
    ids = set(run_ids) - hidden_runs()
    if owner is None or not ids:
        return ids
    query = select(RunRow.id).where(RunRow.id.in_(ids), RunRow.owner == owner)
    return set(session.scalars(query))


def message_to(session: Session, owner: str | None, message: str | None) -> str | None:
    """Return a run's message, with the id of an unseen run replaced."""
    waiting = AWAITED.match(message or "")
    if waiting is None or shown_to(session, owner, [waiting[1]]):
        return message
    return f"{WAITS}{ANOTHERS}{(message or '')[waiting.end() :]}"


def report_to(session: Session, owner: str | None, report: StageReport) -> StageReport:
    """Return a stage report, with makers of reused artifacts replaced if the reader does not see them."""
    if owner is None or not report.made_by:
        return report
    seen = shown_to(session, owner, report.made_by.values())
    shown_runs = {name: run_id if run_id in seen else ANOTHERS for name, run_id in report.made_by.items()}
    return report.model_copy(update={"made_by": shown_runs})


def event_to(session: Session, owner: str | None, event: RunEvent) -> RunEvent:
    """Return an event of a run, with the report in it treated by `report_to`."""
    if event.event is None or not isinstance(event.event.body, StageDone):
        return event
    done = event.event.body
    body = done.model_copy(update={"report": report_to(session, owner, done.report)})
    return event.model_copy(update={"event": event.event.model_copy(update={"body": body})})


def scions_to(session: Session, owner: str | None, views: list[ScionView]) -> list[ScionView]:
    """Return scions, with the runs that made and need them hidden if the reader does not see those."""
    seen = shown_to(session, owner, {run for view in views for run in (view.made_by, view.needed_by) if run})
    if owner is None:
        return views
    return [
        view.model_copy(
            update={
                "made_by": view.made_by if view.made_by in seen else ANOTHERS,
                "needed_by": view.needed_by if view.needed_by in seen else None,
            }
        )
        for view in views
    ]


def first_to(owner: str | None, first: FirstMade) -> FirstMade:
    """Return the first maker of a design, hidden if the reader does not see that run."""
    if owner is None or first.owner == owner:
        return first
    return first.model_copy(update={"run_id": ANOTHERS, "owner": ANOTHERS, "visible": False})


def queue_to(session: Session, owner: str | None, view: QueueView) -> QueueView:
    """Return the reader's own entries of the queue; the ids of others' runs are left out."""
    own = [
        entry for entry in view.entries if owner in (None, entry.owner) and entry.run_id not in hidden_runs()
    ]
    if len(own) == len(view.entries) and owner is None:
        return view
    seen = shown_to(session, owner, {run_id for entry in own for run_id in entry.behind})
    entries = [
        entry.model_copy(
            update={
                "behind": [run_id for run_id in entry.behind if run_id in seen],
                "waits_for": message_to(session, owner, entry.waits_for),
            }
        )
        for entry in own
    ]
    return view.model_copy(update={"entries": entries})
