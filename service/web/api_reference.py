"""The REST reference under `/docs/api`: Swagger UI over the lab's own OpenAPI document, without a network."""

from importlib.resources import files

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles

from service.web.rendering import templates

POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; script-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Swagger UI styles its elements inline and draws its icons as data."""
router = APIRouter(include_in_schema=False)


def mount(app: FastAPI) -> None:
    """Add the page and Swagger UI's files to the application."""
    app.include_router(router)
    app.mount("/static/swagger", StaticFiles(directory=str(files("fastapi_offline") / "static")))


@router.get("/docs/api", response_class=HTMLResponse)
def api_page(request: Request) -> HTMLResponse:
    """Show every route with its parameters, bodies and answers; reading requests can be tried."""
    return templates.TemplateResponse(
        request, "api_reference.html", headers={"Content-Security-Policy": POLICY}
    )
