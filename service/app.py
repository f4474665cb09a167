"""The REST application: `uvicorn service.app:create_app --factory`."""

from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from starlette.middleware.base import RequestResponseEndpoint
from starlette.middleware.trustedhost import TrustedHostMiddleware

from grafting_core.storage import Storage
from service.api import catalogue, experiments, health, problems, runs
from service.api.deps import Lab
from service.settings import Settings
from service.store.engine import Database
from service.store.migrate import upgrade
from service.web import pages

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}


def create_app(settings: Settings | None = None) -> FastAPI:
    """An application over its own database, brought to this version first."""
    settings = settings or Settings()
    database = Database(settings.database_url)
    upgrade(database)
    app = FastAPI(title="Graftlab", version="0.1.0", docs_url=None, redoc_url=None)
    app.state.lab = Lab(settings, database, Storage(settings.storage))
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=settings.allowed_hosts)
    app.middleware("http")(_secured)
    problems.install(app)
    api = APIRouter(prefix="/api/v1")
    for part in (experiments, runs, catalogue):
        api.include_router(part.router)
    app.include_router(api)
    app.include_router(health.router)
    pages.mount(app)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]  # FastAPI's documented way to extend it
    return app


async def _secured(request: Request, call_next: RequestResponseEndpoint) -> Response:
    response = await call_next(request)
    for name, value in SECURITY_HEADERS.items():
        response.headers.setdefault(name, value)
    return response


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's schema, with the submission that routes read from the raw body."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        submission = dict(experiments.SUBMISSION_SCHEMA)
        schemas = document["components"]["schemas"]
        for name, schema in submission.pop("$defs", {}).items():
            schemas.setdefault(name, schema)
        schemas["Submission"] = submission
        app.openapi_schema = document
    return app.openapi_schema
