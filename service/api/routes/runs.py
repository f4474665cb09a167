"""Routes of runs: list, show, follow, and read their logs and files."""

import re
from typing import Annotated

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import PlainTextResponse, StreamingResponse
from sqlalchemy.orm import Session

from grafting_core.specs.documents.errors import shown
from grafting_core.specs.private_names import as_shown, hidden
from grafting_core.specs.profile import BackboneProfile
from grafting_core.storage.artifacts import read_file
from service.api.deps import AppContext, LabDep
from service.api.problems import ApiError
from service.api.untrusted_content import inert_headers, media_type_of
from service.db.tables import RunRow
from service.domain.run_queries import events_after, find_runs, visible_to
from service.domain.visibility import withheld_runs
from service.schemas.runs import EventPage, RunDetail, RunPage, RunState
from workers.contract import attempt_folder

router = APIRouter(prefix="/runs", tags=["runs"])
LOG_BYTES = 100_000
PROFILE = "profile.json"
"""Artifact that is kept by a backbone's digest, with the name that its first user gave the backbone."""
OPEN_RANGE = re.compile(r"bytes=(\d{1,18})-")
CURSOR = re.compile("[0-9a-z]{1,32}")


@router.get("")
def list_runs(
    lab: LabDep,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=64)] = None,
    state: Annotated[list[RunState] | None, Query()] = None,
    name: Annotated[str | None, Query(max_length=200)] = None,
    prefix: Annotated[str | None, Query(max_length=32, pattern="^[0-9a-z]+$")] = None,
) -> RunPage:
    """List runs, newest first, one page at a time."""
    if cursor is not None and not CURSOR.fullmatch(cursor):
        raise ApiError("bad-cursor", f"{shown(cursor)} is not a cursor of this service")
    with lab.database.reading() as session:
        return find_runs(
            session,
            limit=limit,
            before=cursor,
            states=state or (),
            name=name,
            prefix=prefix,
            owner=lab.principal.only_owner,
        )


@router.get("/{run_id}")
def show_run(run_id: str, lab: LabDep) -> RunDetail:
    """Return one run with its spec, progress, usage and reports."""
    return lab.run_detail(run_id)


@router.get("/{run_id}/events")
def follow_run(
    run_id: str,
    lab: LabDep,
    after: Annotated[int, Query(ge=0, lt=2**31)] = 0,
    last_event_id: Annotated[int | None, Header(ge=0, lt=2**31)] = None,
) -> StreamingResponse:
    """Stream server-sent events from the beginning, or after Last-Event-ID, until the run has ended."""
    _check_readable(lab, run_id)
    start = last_event_id if last_event_id is not None else after
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    stream = lab.feed.follow(run_id, start, lab.principal.only_owner)
    return StreamingResponse(stream, media_type="text/event-stream", headers=headers)


@router.get("/{run_id}/history")
def read_history(
    run_id: str,
    lab: LabDep,
    after: Annotated[int, Query(ge=0, lt=2**31)] = 0,
    limit: Annotated[int, Query(ge=1, le=500)] = 200,
) -> EventPage:
    """List the events numbered above `after`, one page at a time."""
    _check_readable(lab, run_id)
    with lab.database.reading() as session:
        events = events_after(session, run_id, after, limit, lab.principal.only_owner)
    return EventPage(events=events, next_after=events[-1].id if len(events) == limit else None)


def find_run(session: Session, lab: AppContext, run_id: str) -> RunRow:
    """Return a run. Raises ApiError if it does not exist or the principal does not see it."""
    run = session.get(RunRow, run_id)
    if run is None or not visible_to(run, lab.principal.only_owner):
        raise ApiError("not-found", f"there is no run {run_id!r}")
    return run


def readable_run(session: Session, lab: AppContext, run_id: str) -> RunRow:
    """Return a run whose events, log, model and files the principal may read. Raises ApiError.

    These hold text and numbers as workers wrote them, with the names of whatever the run works with.
    """
    run = find_run(session, lab, run_id)
    if withheld_runs(session, [run_id]):
        message = (
            f"run {run_id} works with something private; its events, log, model and files are its owner's"
        )
        raise ApiError("forbidden", message)
    return run


def _check_readable(lab: AppContext, run_id: str) -> None:
    with lab.database.reading() as session:
        readable_run(session, lab, run_id)


@router.get("/{run_id}/log", response_class=PlainTextResponse)
def read_log(
    run_id: str, lab: LabDep, attempt: Annotated[int | None, Query(ge=1, lt=2**31)] = None
) -> PlainTextResponse:
    """Return the end of the output of the newest attempt, or of the given one."""
    with lab.database.reading() as session:
        newest = readable_run(session, lab, run_id).attempt
    number = newest if attempt is None else attempt
    if number > newest:
        raise ApiError("not-found", f"run {run_id} has no attempt {number}; its newest is {newest}")
    folder = attempt_folder(run_id, number)
    for name in ("log.txt", "error.txt"):
        if number and lab.storage.exists(f"{folder}/{name}"):
            return PlainTextResponse(
                lab.storage.read_end(f"{folder}/{name}", LOG_BYTES).decode(errors="replace")
            )
    return PlainTextResponse("")


@router.get("/{run_id}/artifacts/{stage}/{name:path}")
def read_artifact(
    run_id: str,
    stage: str,
    name: str,
    lab: LabDep,
    range_: Annotated[str | None, Header(alias="Range")] = None,
) -> Response:
    """Return a file that a stage report names, or its end from a byte on (`Range: bytes=N-`).

    Paths come from the report, never from the request.
    """
    _check_readable(lab, run_id)
    reports = [report for report in show_run(run_id, lab).stages if report.stage == stage]
    path = reports[0].artifacts.get(name) if reports else None
    if path is None or not lab.storage.exists(path):
        raise ApiError("not-found", f"run {run_id} has no artifact {name!r} of stage {stage!r}")
    media_type = media_type_of(path)
    if hidden() and name == PROFILE:
        profile = as_shown(read_file(lab.storage, path.rpartition("/")[0], PROFILE, BackboneProfile))
        return Response(profile.model_dump_json(), media_type=media_type, headers=inert_headers(media_type))
    # Streamed: kept samples are gigabytes.
    size = lab.storage.size(path)
    start = _first_byte(range_, size)
    headers = {"Content-Length": str(size - start), "Accept-Ranges": "bytes", **inert_headers(media_type)}
    if start:
        headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
    return StreamingResponse(
        lab.storage.pieces(path, start=start),
        status_code=206 if start else 200,
        media_type=media_type,
        headers=headers,
    )


def _first_byte(requested: str | None, size: int) -> int:
    """First byte of a range to the end; 0 for the whole file, which answers every other range."""
    found = OPEN_RANGE.fullmatch(requested or "")
    start = int(found[1]) if found else 0
    return start if start < size else 0
