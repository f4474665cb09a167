"""Everything the pages, the API and the client read."""

import json
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel
from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session, joinedload

from grafting_core.specs.backbone import backbone_cards
from grafting_core.specs.budget import Usage
from grafting_core.specs.experiment import ExperimentSpec
from grafting_core.specs.jobs import WORK, Job, as_graft
from service.db.tables import AttemptRow, EventRow, ExperimentRow, RunRow, StageRow
from service.domain.artifact_dependencies import transfers
from service.domain.tracking_endpoints import link
from service.domain.visibility import event_to, message_to, report_to
from service.schemas.runs import RunDetail, RunEvent, RunPage, RunView, StageProgress
from workers.contract import STAGES, Event, PartProgress, StageReport

M = TypeVar("M", bound=BaseModel)
Figures = tuple[float, float, int]
NEWEST_EVENTS = 20
ID_LENGTH = 32
NOTHING: Figures = (0.0, 0.0, 0)


def work_of(run: RunRow) -> Job:
    """The work of a run, as it was resolved at submission."""
    return WORK.validate_json(json.dumps(run.experiment.spec))


def parsed(model: type[M], stored: Any) -> M:
    """A part of a stored document as its model: what is strict of Python values is not of JSON."""
    return model.model_validate_json(json.dumps(stored))


def spec_of(run: RunRow) -> ExperimentSpec:
    """The work of a run that is a graft. Raises ValueError for other kinds."""
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
    """Newest first. Run ids sort by time, so the last id of a page is the cursor of the next."""
    asked = [RunRow.name == name] if name else []
    asked += [RunRow.owner == owner] if owner else []
    asked += [RunRow.id < before] if before else []
    # A range, which every collation and the index agree on, where LIKE would read all rows.
    asked += [RunRow.id >= prefix, RunRow.id <= prefix.ljust(ID_LENGTH, "z")] if prefix else []
    ids = _newest_ids(session, asked, states, limit + 1)
    whole = joinedload(RunRow.experiment, innerjoin=True).defer(ExperimentRow.spec)
    shown = select(RunRow).options(whole).where(RunRow.id.in_(ids[:limit])).order_by(RunRow.id.desc())
    views = run_views(session, session.scalars(shown).all(), owner)
    return RunPage(runs=views, next_cursor=ids[limit - 1] if len(ids) > limit else None)


def _newest_ids(
    session: Session, asked: Sequence[ColumnElement[bool]], states: Sequence[str], count: int
) -> list[str]:
    """A state at a time: within one, the index has the newest first, however many other runs there are."""
    wanted = [[RunRow.state == state] for state in dict.fromkeys(states)] or [[]]
    found: list[str] = []
    for state in wanted:
        query = select(RunRow.id).where(*asked, *state).order_by(RunRow.id.desc()).limit(count)
        found += session.scalars(query)
    return sorted(found, reverse=True)[:count]


def run_views(session: Session, rows: Sequence[RunRow], owner: str | None = None) -> list[RunView]:
    """Views of many runs with three further queries, however many there are, for someone who sees this
    owner's runs only, or all (None). Reports that hold no figures of quality are not read.
    """
    ids = [row.id for row in rows]
    spends = spends_of(session, ids)
    reports = reports_of(session, ids, ("evaluate",))
    views = [_view(row, spends.get(row.id, Usage()), reports.get(row.id, [])) for row in rows]
    return [view.model_copy(update={"message": message_to(session, owner, view.message)}) for view in views]


def visible_to(run: RunRow, owner: str | None) -> bool:
    """Whether someone who sees this owner's runs only, or all (None), sees the run."""
    return owner is None or run.experiment.owner == owner


def run_detail(session: Session, run_id: str, owner: str | None = None) -> RunDetail | None:
    """One run with its spec and reports, or None; None too where it is not this owner's."""
    row = session.get(RunRow, run_id)
    if row is None or not visible_to(row, owner):
        return None
    found = reports_of(session, [run_id]).get(run_id, [])
    reports = [report_to(session, owner, report) for report in found]
    view = _view(row, spends_of(session, [run_id]).get(run_id, Usage()), reports)
    shown = view.model_dump() | {"message": message_to(session, owner, view.message)}
    return RunDetail(**shown, work=work_of(row), stages=reports, parts=_parts(session, row))


def _parts(session: Session, row: RunRow) -> list[PartProgress]:
    """Of the newest progress that says so (not every one does), while the run is at it."""
    if row.state != "RUNNING":
        return []
    query = (
        select(EventRow.body)
        .where(EventRow.run_id == row.id, EventRow.kind == "attempt")
        .order_by(EventRow.seq.desc())
        .limit(NEWEST_EVENTS)
    )
    bodies = (event["body"] for event in session.scalars(query))
    told: list[dict[str, Any]] = next(
        (body.get("parts", []) for body in bodies if body.get("parts") or body["type"] != "progress"), []
    )
    return [PartProgress.model_validate(part) for part in told]


def spend_of(session: Session, run_id: str) -> Usage:
    """What all attempts of a run have used."""
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
    """What a run pays: its attempts' use, and its share of what others made for it or it for others."""
    seconds, flops, images = (max(0, used + other) for used, other in zip(own, moved, strict=True))
    return Usage(device_seconds=seconds, flops=flops, training_images=int(images))


def reports_of(
    session: Session, ids: Sequence[str], stages: Sequence[str] = STAGES
) -> dict[str, list[StageReport]]:
    """What the stages of these runs yielded, in the stages' order."""
    found: dict[str, list[StageReport]] = {}
    query = select(StageRow).where(StageRow.run_id.in_(ids), StageRow.stage.in_(stages))
    rows = session.scalars(query).all()
    for row in sorted(rows, key=lambda row: STAGES.index(row.stage)):
        found.setdefault(row.run_id, []).append(parsed(StageReport, row.report))
    return found


def _view(row: RunRow, spend: Usage, reports: list[StageReport]) -> RunView:
    card = backbone_cards().get(row.experiment.backbone)
    return RunView(
        id=row.id,
        kind=row.experiment.kind,
        name=row.experiment.name,
        owner=row.experiment.owner,
        backbone=row.experiment.backbone,
        state=row.state,
        reason=row.reason,
        message=row.message,
        attempt=row.attempt,
        experiment_digest=row.experiment.digest,
        protocol_digest=row.experiment.protocol_digest,
        created_at=row.created_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
        cancel_requested_at=row.cancel_requested_at,
        pause_requested_at=row.pause_requested_at,
        study=row.study,
        priority=-row.precedence,
        micro_batches=row.micro_batches,
        progress=_progress(row),
        spend=spend,
        share_of_pretraining=spend.flops / card.pretraining.flops if card else 0.0,
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
        mlflow_error=row.mlflow_error,
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
    """Events numbered above `after`, in order, for someone who sees this owner's runs only, or all (None)."""
    query = (
        select(EventRow)
        .where(EventRow.run_id == run_id, EventRow.seq > after)
        .order_by(EventRow.seq)
        .limit(limit)
    )
    events = [event_view(row) for row in session.scalars(query)]
    return events if owner is None else [event_to(session, owner, event) for event in events]


def event_view(row: EventRow) -> RunEvent:
    """The event as streams and pages show it."""
    if row.kind == "attempt":
        return RunEvent(
            id=row.seq, kind="attempt", event=Event.model_validate_json(json.dumps(row.body)), at=row.at
        )
    if row.kind == "request":
        return RunEvent(id=row.seq, kind="request", request=row.body["request"], at=row.at)
    return RunEvent(id=row.seq, kind="state", state=row.body["state"], reason=row.body["reason"], at=row.at)
