"""What one request may take: bytes, headers and time; and how many of them a caller may send."""

import asyncio
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.problems import ApiError, respond
from service.settings import Settings

MAX_BODY = 1_000_000
MAX_ADDRESS = 8_000
MAX_HEADERS = 100
MAX_HEADER_BYTES = 32_000
BODY_SECONDS = 30.0
CALLERS = 10_000


class Limits:
    """ASGI middleware inside the gate: it knows who asks. Bodies are read whole, and given on."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        # Every process of the API counts for itself, and gets its share of the requests.
        self._rate = Rate(
            settings.requests_per_second / settings.servers,
            max(1, settings.requests_burst // settings.servers),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        try:
            _check_envelope(scope)
            self._rate.take(_caller(scope))
            body = await _whole(scope, receive)
        except ApiError as error:
            return await respond(error, scope, receive, send)
        return await self._app(scope, _replay(body, receive), send)


def _check_envelope(scope: Scope) -> None:
    if len(scope["path"]) + len(scope["query_string"]) > MAX_ADDRESS:
        raise ApiError("address-too-long", f"the address has more than {MAX_ADDRESS} bytes")
    size = sum(len(name) + len(value) for name, value in scope["headers"])
    if len(scope["headers"]) > MAX_HEADERS or size > MAX_HEADER_BYTES:
        raise ApiError("headers-too-large", f"send at most {MAX_HEADERS} headers of {MAX_HEADER_BYTES} bytes")


def _caller(scope: Scope) -> str:
    principal = scope.get("state", {}).get("principal")
    if principal is not None:
        return f"key {principal.key_id}"
    return f"address {(scope.get('client') or ('?',))[0]}"


async def _whole(scope: Scope, receive: Receive) -> bytes:
    """The body, read to its end. Raises ApiError where it is too long or too slow."""
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
    # What is left of the body is not read: the connection ends with the answer.
    return ApiError("too-large", f"a request has at most {MAX_BODY} bytes", headers={"Connection": "close"})


def _replay(body: bytes, receive: Receive) -> Receive:
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


class Rate:
    """A token bucket a caller: `burst` at once, `rate` a second after that."""

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, caller: str) -> None:
        """Raises ApiError with Retry-After once the bucket is empty."""
        moment = self._clock()
        if len(self._buckets) > CALLERS:
            self._buckets.clear()
        left, then = self._buckets.get(caller, (float(self._burst), moment))
        left = min(float(self._burst), left + (moment - then) * self._rate)
        if left < 1:
            wait = max(1, round((1 - left) / self._rate))
            raise ApiError(
                "too-many-requests",
                f"at most {self._rate:.0f} requests a second",
                headers={"Retry-After": str(wait)},
            )
        self._buckets[caller] = (left - 1, moment)
