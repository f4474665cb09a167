"""The lab's pages: rendered on the server, usable without other networks, updated by polling."""

from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles

from grafting_core.specs.results import EvaluationReport
from grafting_core.storage.artifacts import CorruptArtifact, read_file
from service.api.deps import LabDep
from service.api.problem_types import CATALOGUE
from service.api.problems import ApiError
from service.api.routes.catalog import list_backbones, list_latencies, list_operators, show_measured
from service.api.routes.runs import find_run, show_run
from service.domain.leaderboard import leaderboard
from service.domain.oracles import with_oracles
from service.domain.run_curves import loss_curves
from service.domain.run_queries import find_runs
from service.schemas.runs import RunDetail
from service.web import api_reference, login, studies
from service.web.pictures import curves, quality_against_cost
from service.web.rendering import HERE, templates

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)


def mount(app: FastAPI) -> None:
    """Add the pages and their static files to the application."""
    app.include_router(router)
    app.include_router(login.router)
    app.include_router(studies.router)
    api_reference.mount(app)
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")


@router.get("/")
def leaderboard_page(request: Request, lab: LabDep) -> HTMLResponse:
    """Show the ranking, and a plot of quality against cost."""
    with lab.database.reading() as session:
        board = leaderboard(session, owner=lab.principal.only_owner)
        active = find_runs(
            session, limit=20, states=("QUEUED", "STARTING", "RUNNING"), owner=lab.principal.only_owner
        ).runs
    groups = [(group, quality_against_cost(group)) for group in with_oracles(lab.storage, board).groups]
    return templates.TemplateResponse(request, "leaderboard.html", {"groups": groups, "active": active})


@router.get("/runs")
def runs_page(
    request: Request,
    lab: LabDep,
    cursor: Annotated[str | None, Query(max_length=32, pattern="^[0-9a-z]+$")] = None,
) -> HTMLResponse:
    """Show all runs, newest first."""
    with lab.database.reading() as session:
        page = find_runs(session, limit=50, before=cursor, owner=lab.principal.only_owner)
    return templates.TemplateResponse(request, "runs.html", {"page": page})


@router.get("/runs/{run_id}")
def run_page(request: Request, run_id: str, lab: LabDep) -> HTMLResponse:
    """Show one run: design, progress, curves, samples, metrics."""
    with lab.database.reading() as session:
        last = find_run(session, lab, run_id).last_event
        drawn = curves(loss_curves(session, run_id, last))
    run = show_run(run_id, lab)
    shown = {"run": run, "curves": drawn}
    return templates.TemplateResponse(request, "run.html", {**shown, "judged": _judged(lab, run)})


def _judged(lab: LabDep, run: RunDetail) -> EvaluationReport | None:
    """Return the evaluation's published report, if it exists and is intact."""
    paths = [stage.artifacts["report.json"] for stage in run.stages if "report.json" in stage.artifacts]
    if not paths or run.withheld:
        return None
    folder, _, name = paths[0].rpartition("/")
    with suppress(FileNotFoundError, CorruptArtifact, ValueError):
        return read_file(lab.storage, folder, name, EvaluationReport)
    return None


@router.get("/measured")
def measured_page(request: Request, lab: LabDep) -> HTMLResponse:
    """Show rank correlations of fidelity rungs, and latency by hardware."""
    return templates.TemplateResponse(
        request, "measured.html", {"measured": show_measured(lab), "table": list_latencies(lab).rows}
    )


@router.get("/operators")
def operators_page(request: Request, lab: LabDep) -> HTMLResponse:
    """Show the operators to graft and the backbones."""
    context = {"operators": list_operators(), "backbones": list_backbones(lab)}
    return templates.TemplateResponse(request, "operators.html", context)


@router.get("/problems/{code}")
def problem_page(request: Request, code: str) -> HTMLResponse:
    """Show the meaning of a problem type."""
    if code not in CATALOGUE:
        raise ApiError("not-found", f"there is no problem type {code!r}; known: {', '.join(CATALOGUE)}")
    return templates.TemplateResponse(request, "problem.html", {"code": code, "problem": CATALOGUE[code]})


@router.get("/problems")
def problems_page(request: Request) -> HTMLResponse:
    """Show every problem type."""
    return templates.TemplateResponse(request, "problems.html", {"catalogue": CATALOGUE})
