"""Nobody passes without a key: every address of the application, mounted ones too, is behind this gate."""

import time
from collections.abc import Mapping
from hashlib import sha256
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl

from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.problems import ApiError, respond
from service.api.schemas import Role
from service.settings import Settings
from service.store.engine import Database
from service.store.keys import Principal, find_principal, note_use
from service.store.models import now
from service.tracking.endpoints import PREFIX, Refused, right_for

COOKIE = "graftlab_session"
OPEN = ("/healthz", "/readyz", "/login", "/static/graftlab.css", "/static/icon.svg")
"""Answered without a key: whether the process lives, how to get in, and what that page looks like."""

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
VIEWER_POSTS = ("/api/v1/experiments/plan", "/api/v1/login-links")
"""They store nothing of the lab's."""
ADMIN_PATHS = ("/api/v1/keys", "/api/v1/admin", "/api/v1/scions:gc", "/api/v1/webhooks")
REMEMBERED_SECONDS = 10.0
"""How long a revoked key may still be taken for valid."""
REMEMBERED = 10_000


def needed_role(method: str, path: str) -> Role:
    """What an address asks for. Unknown ones that change something ask for a runner."""
    if any(path == part or path.startswith(f"{part}/") for part in ADMIN_PATHS):
        return "admin"
    if path.startswith(f"{PREFIX}/"):
        return _needed_in_mlflow(method, path)
    return "viewer" if method in SAFE_METHODS or path in VIEWER_POSTS else "runner"


def _needed_in_mlflow(method: str, path: str) -> Role:
    """MLflow's pages search with POST. What the lab does not serve of it is refused to everybody, later."""
    try:
        right = right_for(method, path.removeprefix(PREFIX))
    except Refused:
        return "viewer"
    return "admin" if right == "lab" else right


class Gate:
    """ASGI middleware: puts the principal into the scope's state, or answers 400, 401 or 403."""

    def __init__(self, app: ASGIApp, settings: Settings, database: Database) -> None:
        self._app, self._settings, self._database = app, settings, database
        self._known: dict[str, tuple[Principal, float]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        try:
            await self._admit(scope)
        except ApiError as error:
            return await respond(error, scope, receive, send)
        return await self._app(scope, receive, send)

    async def _admit(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        check_host(headers.get("host", ""), self._settings.allowed_hosts)
        _check_address(scope["path"], scope["query_string"])
        if scope["path"] in OPEN:
            return
        principal = await self._principal(headers)
        if principal is None:
            raise ApiError("unauthenticated", "this address asks for a valid key")
        if principal.kind == "session" and scope["method"] not in SAFE_METHODS:
            _check_origin(headers)
        role = needed_role(scope["method"], scope["path"])
        if not principal.may(role):
            raise ApiError("forbidden", f"this takes a key of role {role}; yours has role {principal.role}")
        scope.setdefault("state", {})["principal"] = principal

    async def _principal(self, headers: Mapping[str, str]) -> Principal | None:
        scheme, _, secret = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and secret:
            return await self._who(secret.strip())
        session = _cookie(headers.get("cookie", ""))
        return await self._who(session) if session else None

    async def _who(self, secret: str) -> Principal | None:
        name = sha256(secret.encode(errors="replace")).hexdigest()
        principal, until = self._known.get(name, (None, 0.0))
        if principal is None or until < time.monotonic():
            self._known.pop(name, None)
            principal = await run_in_threadpool(self._look_up, secret)
            if principal is not None:
                self._remember(name, principal)
        expired = principal and principal.expires_at and principal.expires_at <= now()
        return None if expired else principal

    def _remember(self, name: str, principal: Principal) -> None:
        if len(self._known) >= REMEMBERED:
            self._known.clear()
        self._known[name] = (principal, time.monotonic() + REMEMBERED_SECONDS)

    def _look_up(self, secret: str) -> Principal | None:
        with self._database.reading() as session:
            principal = find_principal(session, secret, ("key", "session"))
        if principal is not None and principal.key_id is not None:
            self._note_use(principal.key_id)
        return principal

    def _note_use(self, key_id: int) -> None:
        try:
            with self._database.writing() as session:
                note_use(session, key_id)
        except SQLAlchemyError:
            return  # reading goes on where writing cannot, on a full disk for one


def check_host(host: str, allowed: list[str]) -> None:
    """Against DNS rebinding: only the names the lab is known by. Raises ApiError."""
    name = host.rsplit(":", 1)[0] if host.rpartition(":")[2].isdigit() else host
    if "*" not in allowed and name not in allowed:
        raise ApiError("bad-host", "the Host header names another service; GRAFTLAB_ALLOWED_HOSTS adds names")


def _check_address(path: str, query: bytes) -> None:
    """Keys in addresses end in logs and histories; login codes are made for it and work once."""
    if "\0" in path:
        raise ApiError("bad-text", "the address holds a NUL character")
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if "\0" in name + value:
            raise ApiError("bad-text", "the address holds a NUL character")
        if value.startswith("glk_"):
            raise ApiError(
                "key-in-url", "a key was sent in the address: revoke it, and send the new one as a header"
            )


def _check_origin(headers: Mapping[str, str]) -> None:
    """A page of another origin, another port of this machine for one, must not act with our cookie."""
    origin = headers.get("origin", "").partition("://")[2]
    if origin != headers.get("host"):
        raise ApiError("forbidden", "a browser session changes things from the lab's own pages only")


def _cookie(header: str) -> str | None:
    try:
        found = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return None
    return found.value if found else None
