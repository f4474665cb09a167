"""Limits of one request: bytes, headers and time."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.problems import ApiError, respond

MAX_BODY = 1_000_000
MAX_ADDRESS = 8_000
MAX_HEADERS = 100
MAX_HEADER_BYTES = 32_000
BODY_SECONDS = 30.0


class Limits:
    """ASGI middleware inside authentication. Bodies are read whole and passed on."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        try:
            body = await _whole(scope, receive)
        except ApiError as error:
            return await respond(error, scope, receive, send)
        return await self._app(scope, _replay(body, receive), send)


def check_envelope(scope: Scope) -> None:
    """Check the size of address and headers before anything else happens. Raises ApiError."""
    if len(scope["path"]) + len(scope["query_string"]) > MAX_ADDRESS:
        raise ApiError("address-too-long", f"the address has more than {MAX_ADDRESS} bytes")
    size = sum(len(name) + len(value) for name, value in scope["headers"])
    if len(scope["headers"]) > MAX_HEADERS or size > MAX_HEADER_BYTES:
        raise ApiError("headers-too-large", f"send at most {MAX_HEADERS} headers of {MAX_HEADER_BYTES} bytes")


async def _whole(scope: Scope, receive: Receive) -> bytes:
    """Read the body to its end. Raises ApiError if it is too long or too slow."""
    declared = dict(scope["headers"]).get(b"content-length", b"0")
    if declared.isdigit() and int(declared) > MAX_BODY:
        raise _too_large()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await _parts(receive)
    except TimeoutError as error:
        raise ApiError("timeout", f"the body did not arrive within {BODY_SECONDS:.0f} s") from error


async def _parts(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MAX_BODY:
            raise _too_large()
    return body


def _too_large() -> ApiError:
    # The rest of the body is not read: the connection closes with the answer.
    return ApiError("too-large", f"a request has at most {MAX_BODY} bytes", headers={"Connection": "close"})


def _replay(body: bytes, receive: Receive) -> Receive:
    replayed = False

    async def again() -> Message:
        nonlocal replayed
        if replayed:
            return await receive()
        replayed = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
