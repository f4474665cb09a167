"""Hide other users' runs from readers who see only their own, and private things from all other users."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from sqlalchemy import String, cast, select
from sqlalchemy.orm import Session

from grafting_core.specs.backbone import BackboneRef
from grafting_core.specs.base import Frozen
from grafting_core.specs.jobs import WORK
from grafting_core.specs.plans import DistillPlan, EvaluationProtocol
from grafting_core.specs.private_names import ANOTHERS, hidden, names_hidden
from service.db.study_tables import StudyRow
from service.db.tables import ExperimentRow, RunRow
from service.domain.artifact_dependencies import WAITS
from service.schemas.bank import ScionView
from service.schemas.leaderboard import FirstMade
from service.schemas.runs import QueueView, RunEvent
from workers.contract import StageDone, StageReport

_HIDDEN_RUNS: ContextVar[frozenset[str]] = ContextVar("hidden runs", default=frozenset())
"""Runs that register something private which the reader may not know of."""
NAMING: Mapping[str, type[Frozen]] = {
    "backbone": BackboneRef,
    "distill": DistillPlan,
    "evaluate": EvaluationProtocol,
}
"""Parts of a study's document that name registered things."""
AWAITED = re.compile(f"^{WAITS}([0-9a-z]+)")


def hide_runs(run_ids: frozenset[str]) -> None:
    """Hide these runs from the rest of this context."""
    _HIDDEN_RUNS.set(run_ids)


@contextmanager
def hiding_runs(run_ids: frozenset[str]) -> Iterator[None]:
    """Hide these runs, and no others, for the duration of the block."""
    before = _HIDDEN_RUNS.set(run_ids)
    try:
        yield
    finally:
        _HIDDEN_RUNS.reset(before)


def hidden_runs() -> frozenset[str]:
    """Return the runs that are hidden in this context."""
    return _HIDDEN_RUNS.get()


def withheld_runs(session: Session, run_ids: Iterable[str]) -> set[str]:
    """Return those of the runs whose work names something that the reader may not know of."""
    names = {name for _, name in hidden()}
    if not names:
        return set()
    query = select(RunRow.id, cast(ExperimentRow.spec, String)).join(RunRow.experiment)
    found = session.execute(query.where(RunRow.id.in_(set(run_ids)))).all()
    # Parsing takes longer than looking for the names.
    suspects = {run_id: spec for run_id, spec in found if any(f'"{name}"' in spec for name in names)}
    return {run_id for run_id, spec in suspects.items() if _names_hidden(spec)}


def _names_hidden(spec: str) -> bool:
    """Whether the document of some work names something hidden; one that cannot be read counts as such."""
    try:
        return names_hidden(WORK.validate_json(spec))
    except ValueError:
        return True


def names_something_hidden(backbone: str, protocol: EvaluationProtocol) -> bool:
    """Whether a graft of this backbone, evaluated like this, works with something hidden."""
    return ("backbone", backbone) in hidden() or names_hidden(protocol)


def is_withheld(study: StudyRow) -> bool:
    """Whether a study works with something that the reader may not know of."""
    return bool(hidden()) and any(
        names_hidden(model.model_validate_json(json.dumps(study.spec[part])))
        for part, model in NAMING.items()
    )


def title_to(title: str, withheld: bool) -> str:
    """Return the name of a run or study, with hidden names in it replaced if it works with such things.

    Unless its owner gives it another, an analysis is named after its backbone.
    """
    names = sorted({name for _, name in hidden()}, key=len, reverse=True) if withheld else []
    for name in names:
        title = re.sub(rf"(?<![\w./-]){re.escape(name)}(?![\w/-])", ANOTHERS, title)
    return title


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
    if owner is None and not hidden() and not hidden_runs():
        return view
    seen = shown_to(session, owner, {run_id for entry in own for run_id in entry.behind})
    withheld = withheld_runs(session, [entry.run_id for entry in own])
    entries = [
        entry.model_copy(
            update={
                "name": title_to(entry.name, entry.run_id in withheld),
                "behind": [run_id for run_id in entry.behind if run_id in seen],
                "waits_for": message_to(session, owner, entry.waits_for),
            }
        )
        for entry in own
    ]
    return view.model_copy(update={"entries": entries})
