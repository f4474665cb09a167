"""The outermost middleware: an id for each request, headers on each answer, a log line."""

import logging
import time
import uuid

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.metrics import note_request
from service.api.problems import ApiError, respond

log = logging.getLogger("graftlab.api")
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}


class RequestLogMiddleware:
    """ASGI middleware around all others."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        request = Request(scope, send)
        try:
            await self._app(scope, receive, request.send)
        except Exception:
            log.exception("request failed", extra={"request": request.name})
            if not request.status:
                error = ApiError("internal", f"request {request.name} failed; the service's log says why")
                await respond(error, scope, receive, request.send)
        request.note()
        return None


class Request:
    """One request while it is answered."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.name, self.status = uuid.uuid4().hex[:16], 0
        self._scope, self._send, self._began = scope, send, time.perf_counter()

    async def send(self, message: Message) -> None:
        """Pass a message on; the first one gets the request id and the security headers."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-Id"] = self.name
            for name, value in SECURITY_HEADERS.items():
                headers.setdefault(name, value)
        await self._send(message)

    def note(self) -> None:
        """Write the log line and count the request. Queries are left out: they may hold secrets."""
        principal = self._scope.get("state", {}).get("principal")
        facts = {
            "request": self.name,
            "method": self._scope["method"],
            "path": self._scope["path"][:200],
            "status": self.status,
            "seconds": round(time.perf_counter() - self._began, 4),
            "owner": principal.owner if principal else None,
        }
        note_request(self._scope["method"], self.status, time.perf_counter() - self._began)
        log.info("%s %s %s", facts["method"], facts["path"], facts["status"], extra=facts)
