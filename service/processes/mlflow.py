"""MLflow's server of the lab: `python -m service.processes.mlflow`.

It answers only callers with the lab's secret, serves an allow-list of MLflow's endpoints, and keeps
artifacts in one folder.
"""

import hmac
import logging
import os
import shlex
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import uvicorn
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.direct import clear_mlflow, reach_directly
from service.domain.tracking_endpoints import PREFIX, Refused, check_body, right_for
from service.local_keys import mlflow_token
from service.logging import setup_logging
from service.settings import Settings, mlflow_database

log = logging.getLogger("graftlab.mlflow")
AGAIN_SECONDS = 5.0
"""Wait between two attempts to open a database that could not be opened."""
CHECKED_BYTES = 2_000_000
"""Limit of a request body that is checked before MLflow gets it; MLflow accepts at most a megabyte."""


class Guard:
    """ASGI application around MLflow's that checks secret, allow-list and bodies first."""

    def __init__(self, app: ASGIApp, secret: str, database: "Opened") -> None:
        self._app, self._secret, self._database = app, secret, database

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        answer = await self._refusal(scope)
        if answer is not None:
            return await answer(scope, receive, send)
        try:
            receive = await _checked(scope, receive)
        except Refused as error:
            return await _problem(403, str(error))(scope, receive, send)
        except ClientDisconnect:
            return None
        return await self._app(scope, receive, send)

    async def _refusal(self, scope: Scope) -> ASGIApp | None:
        """Return the answer to a request that must not reach MLflow, or None."""
        known = self._knows(Headers(scope=scope))
        path = scope["path"].removeprefix(PREFIX)
        if not known and path != "/health":
            return _problem(401, "use MLflow through the lab's own address, under /mlflow/")
        reason = await run_in_threadpool(self._database.trouble)
        if path == "/health":
            return PlainTextResponse("OK") if not reason else _problem(503, reason if known else "not ready")
        if not scope["path"].startswith(f"{PREFIX}/"):
            return _problem(404, f"everything is under {PREFIX}/")
        try:
            right_for(scope["method"], path)
        except Refused as error:
            return _problem(403, str(error))
        return _problem(503, reason) if reason else None

    def _knows(self, headers: Headers) -> bool:
        scheme, _, secret = headers.get("authorization", "").partition(" ")
        shown = secret.strip().encode(errors="replace")
        return scheme.lower() == "bearer" and hmac.compare_digest(shown, self._secret.encode())


def _problem(status: int, text: str) -> JSONResponse:
    """Build an error in MLflow's own form, so that its client and its pages show the text."""
    code = {401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 503: "TEMPORARILY_UNAVAILABLE"}
    body = {"error_code": code.get(status, "ENDPOINT_NOT_FOUND"), "message": text}
    return JSONResponse(body, status_code=status)


async def _checked(scope: Scope, receive: Receive) -> Receive:
    """Read and check a body that is JSON and changes something; return it to be received again.

    Raises Refused.
    """
    if scope["method"] != "POST":
        return receive
    body = b""
    async for piece in Request(scope, receive).stream():
        body += piece
        if len(body) > CHECKED_BYTES:
            raise Refused(f"the body has more than {CHECKED_BYTES} bytes")
    check_body(scope["path"], body)

    async def again() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return again


class Opened:
    """MLflow's database, opened at the first request, and again after failures or if its file was
    replaced.
    """

    def __init__(self, file: Path, opening: Callable[[], object], remedy: str) -> None:
        self._file, self._opening, self._remedy = file, opening, remedy
        self._inode = 0
        self._trouble, self._tried = "it has not been opened yet", -AGAIN_SECONDS
        self._lock = threading.Lock()

    def trouble(self) -> str:
        """Return why MLflow cannot work, with what to do about it; empty if it can."""
        with self._lock:
            if not self._trouble and self._inode != _inode(self._file):
                self._trouble, self._tried = "its file was replaced", -AGAIN_SECONDS
            if self._trouble and time.monotonic() - self._tried >= AGAIN_SECONDS:
                trouble = self._open()
                if trouble and trouble != self._trouble:
                    log.error("%s", trouble)
                self._trouble, self._tried = trouble, time.monotonic()
                self._inode = _inode(self._file)
            return self._trouble

    def _open(self) -> str:
        try:
            self._opening()
        except Exception as error:  # noqa: BLE001 - SQLAlchemy's, SQLite's, Alembic's and MLflow's own
            text = " ".join(str(error).split())[:300]
            return f"MLflow's database cannot be used ({type(error).__name__}: {text}); {self._remedy}"
        return ""


def _inode(file: Path) -> int:
    try:
        return file.stat().st_ino
    except OSError:
        return 0


def remedy_for(folder: Path, url: str) -> str:
    """Return what to run for a database that is outdated, newer, damaged or locked."""
    file = folder / "mlflow.db"
    return (
        f"`mlflow db upgrade {shlex.quote(url)}` updates an older one; a locked one is free "
        "once its other user has ended; a newer or damaged one is moved aside by "
        f"`mv {shlex.quote(str(file))} {shlex.quote(f'{file}.aside')}`, and the lab fills a new one. Runs "
        "continue without MLflow"
    )


def prepare(settings: Settings) -> tuple[str, Path]:
    """Set the variables that MLflow reads on import; return its database URL and artifact folder."""
    url = mlflow_database(settings.data_dir)
    artifacts = settings.data_dir / "mlflow-artifacts"
    artifacts.mkdir(parents=True, exist_ok=True, mode=0o700)
    artifacts.chmod(0o700)
    clear_mlflow(os.environ)
    reach_directly(os.environ)
    hosts = f"{urlsplit(settings.mlflow_url).hostname}:*,127.0.0.1:*,localhost:*"
    os.environ.update(
        {
            "_MLFLOW_SERVER_FILE_STORE": url,
            "_MLFLOW_SERVER_REGISTRY_STORE": url,
            "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
            "_MLFLOW_SERVER_ARTIFACT_DESTINATION": artifacts.as_uri(),
            "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
            "_MLFLOW_STATIC_PREFIX": PREFIX,
            "MLFLOW_SERVER_ALLOWED_HOSTS": hosts,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            # A pooled connection would keep using a file that was moved aside.
            "MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool",
        }
    )
    return url, artifacts


def create_guard(settings: Settings) -> Guard:
    """Create MLflow's application of this data folder, guarded. Changes the process's environment."""
    url, artifacts = prepare(settings)
    # MLflow reads its environment on import.
    from mlflow.server import handlers  # noqa: PLC0415
    from mlflow.server.fastapi_app import app  # noqa: PLC0415

    from service.domain.artifact_paths import fix_artifacts  # noqa: PLC0415

    fix_artifacts(artifacts)

    def open_stores() -> None:
        handlers._tracking_store = handlers._model_registry_store = None
        # The registries cache the stores that they have opened.
        handlers._tracking_store_registry = handlers.TrackingStoreRegistryWrapper()
        handlers._model_registry_store_registry = handlers.ModelRegistryStoreRegistryWrapper()
        handlers.initialize_backend_stores(url, url, "mlflow-artifacts:/")

    file = settings.data_dir / "mlflow.db"
    opened = Opened(file, open_stores, remedy_for(settings.data_dir, url))
    return Guard(app, mlflow_token(settings.data_dir), opened)


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    setup_logging()
    os.umask(0o077)
    settings = Settings()
    uvicorn.run(
        create_guard(settings),
        host=settings.mlflow_bind,
        port=urlsplit(settings.mlflow_url).port or 5000,
        ws="none",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=5,
    )


if __name__ == "__main__":
    main()
