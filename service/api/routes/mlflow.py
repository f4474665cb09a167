"""Proxy to MLflow under `/mlflow/`, behind the lab's login; answers are streamed."""

import logging
from collections.abc import AsyncIterator
from urllib.parse import quote

import httpx
from fastapi import APIRouter
from fastapi.responses import RedirectResponse
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from service.api.problems import ApiError
from service.api.untrusted_content import inert_headers
from service.db.engine import Database
from service.db.study_tables import StudyRow
from service.db.tables import ExperimentRow, RunRow
from service.domain.api_keys import Principal
from service.domain.tracking_endpoints import PREFIX, Refused, check_body, names_ours, right_for, server_url
from service.settings import Settings

log = logging.getLogger("graftlab.api")
router = APIRouter(include_in_schema=False)
PASSED_ON = ("accept", "accept-encoding", "content-type", "if-none-match", "if-modified-since")
PASSED_BACK = (
    *("content-type", "content-length", "content-encoding", "cache-control"),
    *("etag", "last-modified", "content-disposition"),
)
"""Headers that are passed on and back; neither cookies nor keys are among them."""
MOST_AT_ONCE = 64
WAIT = httpx.Timeout(30, connect=3)
PAGES_POLICY = (
    "default-src 'self'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "font-src 'self' data:; worker-src 'self' blob:; connect-src 'self'; object-src 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
FILES = ("/get-artifact", "/mlflow-artifacts/artifacts")


@router.get(PREFIX)
def to_mlflow() -> RedirectResponse:
    """Redirect to the address with a slash, which MLflow's pages need."""
    return RedirectResponse(f"{PREFIX}/", status_code=307)


class Proxy:
    """ASGI application behind authentication.

    Sends the requests that the principal may make to MLflow with the lab's secret.
    """

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings, self._database = settings, database
        self._tls = httpx.create_ssl_context(trust_env=False)
        self._now = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        principal: Principal = scope["state"]["principal"]
        path = scope["path"].removeprefix(PREFIX)
        body = await request.body()
        await run_in_threadpool(self._check, principal, scope["method"], path, body)
        if self._now >= MOST_AT_ONCE:
            raise ApiError("unavailable", f"{MOST_AT_ONCE} requests to MLflow are under way; try again")
        self._now += 1
        try:
            await self._pass_on(request, path, body, send)
        finally:
            self._now -= 1

    def _check(self, principal: Principal, method: str, path: str, body: bytes) -> None:
        """Raises ApiError if this principal may not make the request."""
        try:
            right = right_for(method, path)
            if right == "viewer":
                return
            if right == "lab":
                raise Refused("only the lab writes artifacts")
            document = check_body(path, body)
        except Refused as error:
            raise ApiError("forbidden", str(error)) from error
        if names_ours(document):
            raise ApiError("forbidden", "tags that begin with `graftlab.` belong to the lab")
        runs = [document.get(name) for name in ("run_id", "runId", "run_uuid", "runUuid")]
        for run_id in {run_id for run_id in runs if isinstance(run_id, str)}:
            self._check_owner(principal, run_id)

    def _check_owner(self, principal: Principal, mlflow_run_id: str) -> None:
        with self._database.reading() as session:
            owners = [
                *session.scalars(
                    select(ExperimentRow.owner)
                    .join(RunRow, RunRow.experiment_id == ExperimentRow.id)
                    .where(RunRow.mlflow_run_id == mlflow_run_id)
                ),
                *session.scalars(select(StudyRow.owner).where(StudyRow.mlflow_run_id == mlflow_run_id)),
            ]
        if not all(principal.may_change(owner) for owner in owners):
            raise ApiError("forbidden", f"this MLflow run is {owners[0]}'s; an admin can change it")

    async def _pass_on(self, request: Request, path: str, body: bytes, send: Send) -> None:
        try:
            url = server_url(self._settings.mlflow_url, quote(path))
        except Refused as error:
            raise ApiError("unavailable", str(error)) from error
        client = httpx.AsyncClient(verify=self._tls, trust_env=False, timeout=WAIT)
        async with client:
            outgoing = client.build_request(
                request.method,
                f"{url}?{request.url.query}" if request.url.query else url,
                content=body or None,
                headers=self._headers(request.headers),
            )
            try:
                answer = await client.send(outgoing, stream=True)
            except httpx.HTTPError as error:
                raise ApiError(
                    "unavailable",
                    f"MLflow does not answer ({type(error).__name__}); runs continue without it, and "
                    "`graft doctor` says more",
                ) from error
            try:
                if answer.status_code == 401:
                    raise ApiError("unavailable", "MLflow's server does not accept the lab's secret")
                await _pass_back(answer, path)(request.scope, request.receive, send)
            finally:
                await answer.aclose()

    def _headers(self, incoming: Headers) -> dict[str, str]:
        headers = {name: incoming[name] for name in PASSED_ON if name in incoming}
        token = self._settings.mlflow_token()
        return {**headers, "authorization": f"Bearer {token}"} if token else headers


def _pass_back(answer: httpx.Response, path: str) -> StreamingResponse:
    headers = {name: answer.headers[name] for name in PASSED_BACK if name in answer.headers}
    is_file = any(part in path for part in FILES)
    headers["Content-Security-Policy"] = PAGES_POLICY
    if is_file:
        headers |= inert_headers(answer.headers.get("content-type", ""))
    return StreamingResponse(_pieces(answer), status_code=answer.status_code, headers=headers)


async def _pieces(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for piece in answer.aiter_raw():
            yield piece
    except httpx.HTTPError as error:
        log.warning("MLflow broke off an answer (%s)", type(error).__name__)
        raise
