"""The REST application: `uvicorn service.app:create_app --factory`."""

from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from grafting_core.storage import Storage
from service.api import (
    actions,
    analyses,
    catalogue,
    experiments,
    health,
    keys,
    problems,
    runs,
    scions,
    studies,
)
from service.api.bodies import DOCUMENTED
from service.api.deps import Lab
from service.api.feed import Feed
from service.api.front import Front
from service.api.gate import Gate
from service.api.limits import Limits
from service.api.memory import Memory
from service.credentials import first_key
from service.settings import Settings
from service.store.engine import Database
from service.store.keys import ensure_admin
from service.store.migrate import upgrade
from service.web import pages


def create_app(settings: Settings | None = None) -> FastAPI:
    """An application over its own database, brought to this version first."""
    settings = settings or Settings()
    database = Database(settings.database_url)
    upgrade(database)
    app = FastAPI(title="Graftlab", version="0.1.0", docs_url=None, redoc_url=None)
    app.state.lab = Lab(settings, database, Storage(settings.storage), Feed(database), Memory())
    _admit_first_key(settings, database)
    # The last one added is the outermost.
    app.add_middleware(Limits, settings=settings)
    app.add_middleware(Gate, settings=settings, database=database)
    app.add_middleware(Front)
    problems.install(app)
    api = APIRouter(prefix="/api/v1")
    for part in (experiments, analyses, runs, actions, catalogue, keys, scions, studies):
        api.include_router(part.router)
    app.include_router(api)
    app.include_router(health.router)
    pages.mount(app)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]  # FastAPI's documented way to extend it
    return app


def _admit_first_key(settings: Settings, database: Database) -> None:
    """The key that the lab's own machine finds in the data folder, made at the first start."""
    secret = first_key(settings.data_dir)
    with database.writing() as session:
        ensure_admin(session, secret)


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's schema, with the bodies that routes read themselves and with how to show a key."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        components = document["components"]
        wanted: list[tuple[type[BaseModel], JsonSchemaMode]] = [
            (cls, "validation") for cls in DOCUMENTED.values()
        ]
        _, bodies = models_json_schema(wanted, ref_template="#/components/schemas/{model}")
        for name, schema in bodies["$defs"].items():
            components["schemas"].setdefault(name, schema)
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
        app.openapi_schema = document
    return app.openapi_schema
