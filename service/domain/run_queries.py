"""Queries of runs for pages, API and client."""

import json
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel
from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session, joinedload

from grafting_core.specs.budget import Usage
from grafting_core.specs.experiment import ExperimentSpec
from grafting_core.specs.jobs import WORK, Job, as_graft
from grafting_core.specs.registration import RegistrationSpec
from service.db.tables import AttemptRow, EventRow, ExperimentRow, RunRow, StageRow
from service.domain.artifact_dependencies import transfers
from service.domain.pretraining import backbone_of, share_of_pretraining
from service.domain.tracking_endpoints import link
from service.domain.visibility import (
    event_to,
    hidden_runs,
    message_to,
    report_to,
    title_to,
    withheld_runs,
)
from service.schemas.runs import RunDetail, RunEvent, RunPage, RunView, StageProgress
from workers.contract import STAGES, Event, PartProgress, StageReport

M = TypeVar("M", bound=BaseModel)
Figures = tuple[float, float, int]
NEWEST_EVENTS = 20
ID_LENGTH = 32
NOTHING: Figures = (0.0, 0.0, 0)


def work_of(run: RunRow) -> Job:
    """Return the work of a run as resolved at submission."""
    return WORK.validate_json(json.dumps(run.experiment.spec))


def parsed(model: type[M], stored: Any) -> M:
    """Parse a part of a stored document; strict models accept JSON where they refuse Python values."""
    return model.model_validate_json(json.dumps(stored))


def spec_of(run: RunRow) -> ExperimentSpec:
    """Return the spec of a run that is a graft. Raises ValueError for other kinds."""
    return as_graft(work_of(run))


def find_runs(
    session: Session,
    *,
    limit: int,
    before: str | None = None,
    states: Sequence[str] = (),
    name: str | None = None,
    prefix: str | None = None,
    owner: str | None = None,
) -> RunPage:
    """List runs, newest first. Run ids sort by time, so the last id of a page is the cursor of the next."""
    conditions = [RunRow.name == name] if name else []
    conditions += [RunRow.owner == owner] if owner else []
    conditions += [RunRow.id.not_in(hidden_runs())] if hidden_runs() else []
    conditions += [RunRow.id < before] if before else []
    # A range, on which every collation and the index agree; LIKE would read all rows.
    conditions += [RunRow.id >= prefix, RunRow.id <= prefix.ljust(ID_LENGTH, "z")] if prefix else []
    ids = _newest_ids(session, conditions, states, limit + 1)
    whole = joinedload(RunRow.experiment, innerjoin=True).defer(ExperimentRow.spec)
    shown = select(RunRow).options(whole).where(RunRow.id.in_(ids[:limit])).order_by(RunRow.id.desc())
    views = run_views(session, session.scalars(shown).all(), owner)
    return RunPage(runs=views, next_cursor=ids[limit - 1] if len(ids) > limit else None)


def _newest_ids(
    session: Session, conditions: Sequence[ColumnElement[bool]], states: Sequence[str], count: int
) -> list[str]:
    """Return the newest ids, queried per state: within a state the index yields the newest first."""
    by_state = [[RunRow.state == state] for state in dict.fromkeys(states)] or [[]]
    ids: list[str] = []
    for state in by_state:
        query = select(RunRow.id).where(*conditions, *state).order_by(RunRow.id.desc()).limit(count)
        ids += session.scalars(query)
    return sorted(ids, reverse=True)[:count]


def run_views(session: Session, rows: Sequence[RunRow], owner: str | None = None) -> list[RunView]:
    """Build views of many runs with a fixed number of queries; reports without quality metrics are not read.

    `owner` restricts what the views show of other runs to that owner's; None shows all.
    """
    ids = [row.id for row in rows]
    spends = spends_of(session, ids)
    reports = reports_of(session, ids, ("evaluate",))
    withheld = withheld_runs(session, ids)
    views = [
        _view(row, spends.get(row.id, Usage()), reports.get(row.id, []), row.id in withheld) for row in rows
    ]
    return [view.model_copy(update={"message": message_to(session, owner, view.message)}) for view in views]


def visible_to(run: RunRow, owner: str | None) -> bool:
    """Check whether a reader who sees this owner's runs, or all (None), sees the run."""
    return run.id not in hidden_runs() and owner in (None, run.experiment.owner)


def run_detail(session: Session, run_id: str, owner: str | None = None) -> RunDetail | None:
    """Return one run with its spec and reports; None if it does not exist or is not this owner's."""
    row = session.get(RunRow, run_id)
    if row is None or not visible_to(row, owner):
        return None
    stored = reports_of(session, [run_id]).get(run_id, [])
    reports = [report_to(session, owner, report) for report in stored]
    withheld = bool(withheld_runs(session, [run_id]))
    view = _view(row, spends_of(session, [run_id]).get(run_id, Usage()), reports, withheld)
    shown = view.model_dump() | {"message": message_to(session, owner, view.message)}
    parts = _parts(session, row)
    if withheld:
        reports = [report.model_copy(update={"notes": ()}) for report in reports]
        parts = [part.model_copy(update={"reason": ""}) for part in parts]
    work = work_of(row)
    if not isinstance(work, RegistrationSpec):
        work = work.model_copy(update={"name": view.name})
    return RunDetail(**shown, work=work, stages=reports, parts=parts)


def _parts(session: Session, row: RunRow) -> list[PartProgress]:
    """Return the operators' progress, from the newest event that has it, while the run is running."""
    if row.state != "RUNNING":
        return []
    query = (
        select(EventRow.body)
        .where(EventRow.run_id == row.id, EventRow.kind == "attempt")
        .order_by(EventRow.seq.desc())
        .limit(NEWEST_EVENTS)
    )
    bodies = (event["body"] for event in session.scalars(query))
    parts: list[dict[str, Any]] = next(
        (body.get("parts", []) for body in bodies if body.get("parts") or body["type"] != "progress"), []
    )
    return [PartProgress.model_validate(part) for part in parts]


def spend_of(session: Session, run_id: str) -> Usage:
    """Return the use of all attempts of a run."""
    return spends_of(session, [run_id]).get(run_id, Usage())


def spends_of(session: Session, ids: Sequence[str]) -> dict[str, Usage]:
    query = (
        select(
            AttemptRow.run_id,
            func.sum(AttemptRow.device_seconds),
            func.sum(AttemptRow.flops),
            func.sum(AttemptRow.training_images),
        )
        .where(AttemptRow.run_id.in_(ids))
        .group_by(AttemptRow.run_id)
    )
    moved = transfers(session, ids)
    own = {run_id: (seconds, flops, int(images)) for run_id, seconds, flops, images in session.execute(query)}
    return {
        run_id: _sum_of(own.get(run_id, NOTHING), moved.get(run_id, NOTHING)) for run_id in {*own, *moved}
    }


def _sum_of(own: Figures, moved: Figures) -> Usage:
    """Return what a run pays: its attempts' use, plus its share of others' work, minus others' share of
    its.
    """
    seconds, flops, images = (max(0, used + other) for used, other in zip(own, moved, strict=True))
    return Usage(device_seconds=seconds, flops=flops, training_images=int(images))


def reports_of(
    session: Session, ids: Sequence[str], stages: Sequence[str] = STAGES
) -> dict[str, list[StageReport]]:
    """Return the stage reports of these runs, in the order of the stages."""
    by_run: dict[str, list[StageReport]] = {}
    query = select(StageRow).where(StageRow.run_id.in_(ids), StageRow.stage.in_(stages))
    rows = session.scalars(query).all()
    for row in sorted(rows, key=lambda row: STAGES.index(row.stage)):
        by_run.setdefault(row.run_id, []).append(parsed(StageReport, row.report))
    return by_run


def _view(row: RunRow, spend: Usage, reports: list[StageReport], withheld: bool) -> RunView:
    return RunView(
        id=row.id,
        kind=row.experiment.kind,
        name=title_to(row.experiment.name, withheld and row.experiment.kind != "registration"),
        owner=row.experiment.owner,
        backbone=row.experiment.backbone,
        state=row.state,
        reason=row.reason,
        message=None if withheld else row.message,
        attempt=row.attempt,
        experiment_digest=row.experiment.digest,
        protocol_digest=row.experiment.protocol_digest,
        created_at=row.created_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
        cancel_requested_at=row.cancel_requested_at,
        pause_requested_at=row.pause_requested_at,
        tag=row.tag,
        priority=-row.precedence,
        accumulation_steps=row.accumulation_steps,
        progress=_progress(row),
        spend=spend,
        share_of_pretraining=share_of_pretraining(backbone_of(row.experiment), spend.flops),
        forecast=row.forecast,
        metrics={
            name: value
            for report in reports
            if report.stage == "evaluate"
            for name, value in report.metrics.items()
        },
        intervals={name: interval for report in reports for name, interval in report.intervals.items()},
        cost=next((report.cost for report in reports if report.cost), None),
        mlflow_url=link(row.mlflow_experiment_id, row.mlflow_run_id),
        mlflow_error=None if withheld else row.mlflow_error,
        withheld=withheld,
    )


def _progress(row: RunRow) -> StageProgress | None:
    if row.stage is None or row.state not in ("STARTING", "RUNNING"):
        return None
    return StageProgress(
        stage=row.stage, step=row.step, total_steps=row.total_steps, seconds_left=row.seconds_left
    )


def events_after(
    session: Session, run_id: str, after: int, limit: int = 500, owner: str | None = None
) -> list[RunEvent]:
    """List the events numbered above `after`, in order, for a reader of this owner's runs, or all (None)."""
    query = (
        select(EventRow)
        .where(EventRow.run_id == run_id, EventRow.seq > after)
        .order_by(EventRow.seq)
        .limit(limit)
    )
    events = [event_view(row) for row in session.scalars(query)]
    return events if owner is None else [event_to(session, owner, event) for event in events]


def event_view(row: EventRow) -> RunEvent:
    """Return the event as shown by streams and pages."""
    if row.kind == "attempt":
        return RunEvent(
            id=row.seq, kind="attempt", event=Event.model_validate_json(json.dumps(row.body)), at=row.at
        )
    if row.kind == "request":
        return RunEvent(id=row.seq, kind="request", request=row.body["request"], at=row.at)
    return RunEvent(id=row.seq, kind="state", state=row.body["state"], reason=row.body["reason"], at=row.at)
