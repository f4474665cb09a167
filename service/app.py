"""The REST application; `python -m service.processes.api` serves it."""

from fastapi import APIRouter, Depends, FastAPI

from grafting_core.storage.storage import Storage
from service.api import metrics, problems
from service.api.deps import AppContext
from service.api.event_stream import EventBroadcaster
from service.api.middleware.access_log import RequestLogMiddleware
from service.api.middleware.authentication import AuthMiddleware
from service.api.middleware.limits import Limits
from service.api.middleware.rates import Rates
from service.api.openapi import described
from service.api.query_parameters import known_parameters
from service.api.routes import (
    admin,
    analyses,
    bank,
    catalog,
    experiments,
    exports,
    health,
    keys,
    mlflow,
    registry,
    run_controls,
    runs,
    studies,
    webhooks,
)
from service.db.engine import Database
from service.db.migrate import upgrade
from service.domain.api_keys import ensure_admin
from service.domain.forecast_cache import ForecastCache
from service.domain.tracking_endpoints import PREFIX
from service.local_keys import first_key
from service.settings import Settings
from service.web import pages

CONNECTIONS = 10
"""PostgreSQL connections kept open by all processes of the API together."""
RATES = "request-rates"
"""File in the data folder that counts the requests each caller has left."""


def create_app(settings: Settings | None = None) -> FastAPI:
    """Create the application; its database is migrated to this version first."""
    settings = settings or Settings()
    database = Database(settings.database_url, max(2, CONNECTIONS // settings.api_processes))
    upgrade(database)
    app = FastAPI(
        title="Graftlab",
        version="0.1.0",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        dependencies=[Depends(known_parameters)],
    )
    app.state.lab = AppContext(
        settings, database, Storage(settings.storage), EventBroadcaster(database), ForecastCache()
    )
    app.state.probe = health.Probe(app.state.lab)
    _admit_first_key(settings, database)
    # The last one added is the outermost.
    app.add_middleware(Limits)
    app.add_middleware(AuthMiddleware, settings=settings, database=database, rates=_rates(settings))
    app.add_middleware(RequestLogMiddleware)
    problems.install(app)
    api = APIRouter(prefix="/api/v1")
    # The registry last: its addresses hold names with slashes, such as other routes begin with.
    parts = (
        experiments,
        analyses,
        exports,
        runs,
        run_controls,
        catalog,
        keys,
        bank,
        studies,
        webhooks,
        admin,
        registry,
    )
    for part in parts:
        api.include_router(part.router)
    app.include_router(api)
    app.include_router(health.router)
    app.include_router(metrics.router)
    app.include_router(mlflow.router)
    app.mount(PREFIX, mlflow.Proxy(settings, database))
    pages.mount(app)
    app.openapi = lambda: described(app)  # type: ignore[method-assign]  # FastAPI's documented way to extend it
    return app


def _rates(settings: Settings) -> Rates:
    """Return the rate limit, shared by the API's processes if there are several."""
    shared = settings.data_dir / RATES if settings.api_processes > 1 else None
    return Rates(settings.requests_per_second, settings.requests_burst, shared)


def _admit_first_key(settings: Settings, database: Database) -> None:
    """Store the key that this machine finds in the data folder, made at the first start."""
    secret = first_key(settings.data_dir)
    with database.writing() as session:
        ensure_admin(session, secret)
