"""MLflow's server as the lab runs it: `python -m service.processes.mlflow`.

It answers only to who shows the lab's secret, serves the named part of MLflow's interface, and keeps and
reads artifacts in one folder.
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
"""Between two attempts to open a database that could not be opened."""
CHECKED_BYTES = 2_000_000
"""Of a body that is read before MLflow sees it; MLflow takes at most a megabyte."""


class Guard:
    """ASGI application around MLflow's: secret, allow-list and bodies are checked before it is asked."""

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
        """The answer to a request that MLflow is not to see, or None."""
        known = self._knows(Headers(scope=scope))
        path = scope["path"].removeprefix(PREFIX)
        if not known and path != "/health":
            return _problem(401, "MLflow is reached through the lab's own address, under /mlflow/")
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
        given = secret.strip().encode(errors="replace")
        return scheme.lower() == "bearer" and hmac.compare_digest(given, self._secret.encode())


def _problem(status: int, text: str) -> JSONResponse:
    """An error in MLflow's own form, so that its client and its pages show the text."""
    code = {401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 503: "TEMPORARILY_UNAVAILABLE"}
    body = {"error_code": code.get(status, "ENDPOINT_NOT_FOUND"), "message": text}
    return JSONResponse(body, status_code=status)


async def _checked(scope: Scope, receive: Receive) -> Receive:
    """The request's body, read and checked where it is JSON that changes something. Raises Refused."""
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
    """MLflow's database: opened at the first request, again later where that did not work, and anew where
    its file was removed or replaced.
    """

    def __init__(self, file: Path, opening: Callable[[], object], remedy: str) -> None:
        self._file, self._opening, self._remedy = file, opening, remedy
        self._inode = 0
        self._trouble, self._tried = "it has not been opened yet", -AGAIN_SECONDS
        self._lock = threading.Lock()

    def trouble(self) -> str:
        """Why MLflow cannot work, with what to do about it; empty where it can."""
        with self._lock:
            if not self._trouble and self._inode != _inode(self._file):
                self._trouble, self._tried = "its file was replaced", -AGAIN_SECONDS
            if self._trouble and time.monotonic() - self._tried >= AGAIN_SECONDS:
                found = self._open()
                if found and found != self._trouble:
                    log.error("%s", found)
                self._trouble, self._tried = found, time.monotonic()
                self._inode = _inode(self._file)
            return self._trouble

    def _open(self) -> str:
        try:
            self._opening()
        except Exception as error:  # noqa: BLE001 - SQLAlchemy's, SQLite's, Alembic's and MLflow's own
            said = " ".join(str(error).split())[:300]
            return f"MLflow's database cannot be used ({type(error).__name__}: {said}); {self._remedy}"
        return ""


def _inode(file: Path) -> int:
    try:
        return file.stat().st_ino
    except OSError:
        return 0


def remedy_for(folder: Path, url: str) -> str:
    """What to run about a database that is out of date, newer, damaged or locked."""
    file = folder / "mlflow.db"
    return (
        f"`mlflow db upgrade {shlex.quote(url)}` brings an older one up to date; a locked one is free "
        f"once its other user has ended; a newer or damaged one is put aside by `mv {shlex.quote(str(file))} "
        f"{shlex.quote(f'{file}.aside')}`, and the lab fills a new one. Runs go on without MLflow"
    )


def prepare(settings: Settings) -> tuple[str, Path]:
    """Set what MLflow reads from its environment when it is imported; its database and artifact folder."""
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
            # A connection that is kept would go on with a file that was put aside.
            "MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool",
        }
    )
    return url, artifacts


def create_guard(settings: Settings) -> Guard:
    """MLflow's application of this data folder, guarded. Changes the process's environment."""
    url, artifacts = prepare(settings)
    # MLflow reads its environment when it is imported.
    from mlflow.server import handlers  # noqa: PLC0415
    from mlflow.server.fastapi_app import app  # noqa: PLC0415

    from service.domain.artifact_paths import fix_artifacts  # noqa: PLC0415

    fix_artifacts(artifacts)

    def open_stores() -> None:
        handlers._tracking_store = handlers._model_registry_store = None
        # They remember the stores that they have opened.
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
