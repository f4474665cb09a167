"""Pages of studies."""

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from service.api.deps import LabDep
from service.api.routes.studies import list_studies, show_study
from service.domain.study_report_paths import FIGURES, report_folder
from service.web.rendering import templates

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)


@router.get("/studies")
def studies_page(request: Request, lab: LabDep) -> HTMLResponse:
    """Show all studies, newest first."""
    return templates.TemplateResponse(request, "studies.html", {"page": list_studies(lab, 50)})


@router.get("/studies/{study_id}")
def study_page(request: Request, study_id: str, lab: LabDep) -> HTMLResponse:
    """Show one study: its phase, its best design against the baselines, and the plots of its report."""
    study = show_study(study_id, lab)
    files = set() if study.withheld else set(lab.storage.names(report_folder(study_id)))
    figures = [name for name in FIGURES if f"{name}.png" in files]
    runs = sorted(study.runs, key=lambda run: run.quality if run.quality is not None else float("inf"))
    context = {"study": study, "runs": runs, "figures": figures, "report": "report.html" in files}
    return templates.TemplateResponse(request, "study.html", context)
