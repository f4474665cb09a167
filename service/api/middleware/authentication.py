"""Authentication of every request, mounted applications included."""

import re
from collections.abc import Mapping
from functools import partial
from http.cookies import CookieError, SimpleCookie
from ipaddress import IPv6Address
from urllib.parse import unquote_plus

from sqlalchemy.exc import SQLAlchemyError
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.middleware.callers import Callers
from service.api.middleware.limits import check_envelope
from service.api.middleware.rates import Rates
from service.api.middleware.rights import SAFE_METHODS, is_of_the_lab, needed_role
from service.api.middleware.stream_rights import Watched
from service.api.problems import ApiError, respond, unavailable
from service.db.engine import Database
from service.domain.api_keys import Principal
from service.schemas.runs import Role
from service.settings import Settings

COOKIE = "graftlab_session"
OPEN = ("/healthz", "/readyz", "/login", "/static/graftlab.css", "/static/icon.svg")
"""Paths that need no key: liveness and readiness, the login page and its style."""
FULLER_WITH_KEY = "/readyz"
KEY = re.compile(r"(?<![A-Za-z0-9])gl[ks]_[A-Za-z0-9_-]{3}")
"""Pattern of the beginning of a key's or a session's secret."""


class AuthMiddleware:
    """ASGI middleware that puts the principal into the scope's state, or answers 400, 401, 403, 429 or
    503.
    """

    def __init__(self, app: ASGIApp, settings: Settings, database: Database, rates: Rates) -> None:
        self._app, self._settings, self._rates = app, settings, rates
        self._callers = Callers(database)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        secret = _secret(Headers(scope=scope))
        try:
            principal = await self._admit(scope, secret)
        except ApiError as error:
            return await respond(error, scope, receive, send)
        if principal is None or secret is None:
            return await self._app(scope, receive, send)
        scope.setdefault("state", {})["principal"] = principal
        still_may = partial(self._still_may, scope, secret, principal)
        return await Watched(send, still_may).run(lambda passed: self._app(scope, receive, passed))

    async def _admit(self, scope: Scope, secret: str | None) -> Principal | None:
        """Return the principal of a request; None for paths that need no key. Raises ApiError."""
        headers = Headers(scope=scope)
        # The rate is counted first, before any look-up; secrets not yet known to be valid count for their
        # address.
        seen = self._callers.seen(secret) if secret else None
        self._rates.take(f"key {seen.rights_from}" if seen else f"address {_network(scope)}")
        check_envelope(scope)
        check_host(headers.get("host", ""), self._settings.allowed_hosts)
        _check_address(scope["path"], scope["query_string"])
        if scope["path"] in OPEN:
            return await self._principal_if_known(scope, secret)
        role = needed_role(scope["method"], scope["path"])
        principal = await self._who(secret, fresh=role == "admin") if secret else None
        if principal is None:
            raise ApiError("unauthenticated", "this address needs a valid key; `graft` sends GRAFTLAB_KEY")
        _check_rights(scope, headers, principal, role)
        return principal

    async def _principal_if_known(self, scope: Scope, secret: str | None) -> Principal | None:
        """Return the principal at an open path that shows more with a key; None if there is none."""
        if secret is None or scope["path"] != FULLER_WITH_KEY:
            return None
        try:
            return await self._who(secret)
        except ApiError:
            return None

    async def _who(self, secret: str, *, fresh: bool = False) -> Principal | None:
        try:
            return await self._callers.who(secret, fresh=fresh)
        except SQLAlchemyError as error:
            raise unavailable(error) from error

    async def _still_may(self, scope: Scope, secret: str, before: Principal) -> bool:
        """Check whether an answer in progress may continue; while the database is unavailable it may."""
        try:
            current = await self._callers.who(secret)
        except SQLAlchemyError:
            return True
        same = current is not None and (current.owner, current.sees) == (before.owner, before.sees)
        return same and current is not None and current.may(needed_role(scope["method"], scope["path"]))


def _check_rights(scope: Scope, headers: Headers, principal: Principal, role: Role) -> None:
    """Raises ApiError if the principal may not make this request."""
    if principal.kind == "session" and scope["method"] not in SAFE_METHODS:
        _check_origin(headers)
    if not principal.may(role):
        raise ApiError("forbidden", f"this takes a key of role {role}; yours has role {principal.role}")
    if principal.only_owner is not None and is_of_the_lab(scope["path"]):
        raise ApiError("forbidden", "this shows the runs of all users; your key sees only your own")


def _secret(headers: Mapping[str, str]) -> str | None:
    """Return the secret of the key or session that came with the request."""
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and secret.strip():
        return secret.strip()
    return _cookie(headers.get("cookie", ""))


def _network(scope: Scope) -> str:
    """Return the network that a request comes from: an IPv4 address, or the /64 of an IPv6 subscriber."""
    host: str = (scope.get("client") or ("?",))[0]
    try:
        address = IPv6Address(host)
    except ValueError:
        return host
    return str(address.ipv4_mapped or f"{int(address) >> 64:x}::/64")


def check_host(host: str, allowed: list[str]) -> None:
    """Refuse Host headers that do not name this lab, against DNS rebinding. Raises ApiError."""
    name = host.rsplit(":", 1)[0] if host.rpartition(":")[2].isdigit() else host
    if "*" not in allowed and name not in allowed:
        raise ApiError("bad-host", "the Host header names another service; GRAFTLAB_ALLOWED_HOSTS adds names")


def _check_address(path: str, query: bytes) -> None:
    """Refuse keys in addresses: these end in logs and histories. Login codes are allowed, as they work once.

    Raises ApiError.
    """
    text = f"{path}?{unquote_plus(query.decode('latin-1'))}"
    if "\0" in text:
        raise ApiError("bad-text", "the address holds a NUL character")
    if KEY.search(text):
        raise ApiError(
            "key-in-url", "a key was sent in the address: revoke it, and send the new one as a header"
        )


def _check_origin(headers: Mapping[str, str]) -> None:
    """Raises ApiError if the browser request comes from a page of another origin or port."""
    origin = headers.get("origin", "").partition("://")[2]
    if origin != headers.get("host"):
        raise ApiError("forbidden", "a browser session changes things from the lab's own pages only")


def _cookie(header: str) -> str | None:
    try:
        morsel = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return None
    return morsel.value if morsel else None
