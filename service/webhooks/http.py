"""One request to a checked address: pinned to it, bounded in time and size, following nothing."""

import ssl
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import httpcore

from service.domain.webhook_addresses import (
    Blocked,
    Resolve,
    checked_addresses,
    host_of,
    port_of,
    read_url,
    resolve,
)

MOST_BYTES = 64 * 1024
"""That are read of an answer: its head, of which the status alone matters."""
FAILURES = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError)


class Undelivered(Exception):
    """No answer came, or none that is HTTP; the text says what happened."""


class _Line(httpcore.NetworkStream):
    """A connection that ends at a fixed time, and after a fixed number of bytes that were read."""

    def __init__(self, inner: httpcore.NetworkStream, deadline: float) -> None:
        self._inner, self._deadline, self._read = inner, deadline, 0

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._read >= MOST_BYTES:
            raise httpcore.ReadError(f"the answer's head is longer than {MOST_BYTES} bytes")
        data = self._inner.read(min(max_bytes, MOST_BYTES), timeout=left(self._deadline))
        self._read += len(data)
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, timeout=left(self._deadline))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        inner = self._inner.start_tls(ssl_context, server_hostname, timeout=left(self._deadline))
        return _Line(inner, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _Pinned(httpcore.NetworkBackend):
    """Connects to addresses that were checked a moment ago, never to a name that is looked up again."""

    def __init__(self, host: str, addresses: Sequence[str], deadline: float) -> None:
        self._host, self._addresses, self._deadline = host, addresses, deadline
        self._plain = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        failure: Exception = Blocked(f"{host} is not {self._host}")
        for address in self._addresses if host.lower().rstrip(".") == self._host else ():
            try:
                return _Line(
                    self._plain.connect_tcp(address, port, timeout=left(self._deadline)), self._deadline
                )
            except (httpcore.NetworkError, httpcore.TimeoutException) as error:
                failure = error
        raise failure


def left(deadline: float) -> float:
    """Seconds until then. Raises httpcore.ReadTimeout where it has passed."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise httpcore.ReadTimeout("the time for one request is over")
    return seconds


def post(
    text: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    named: Sequence[str],
    seconds: float,
    look_up: Resolve = resolve,
) -> int:
    """Send `body`, and return the answer's status, whatever it is. Raises Blocked, Undelivered.

    Redirects are not followed, proxies of the environment not used, the answer's body not read. Host header
    and certificate are those of the name in the URL.
    """
    url = read_url(text)
    host, port = host_of(url), port_of(url)
    deadline = time.monotonic() + seconds
    backend = _Pinned(host, checked_addresses(host, port, named, look_up), deadline)
    address = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
    try:
        with (
            httpcore.ConnectionPool(ssl.create_default_context(), network_backend=backend) as pool,
            pool.stream("POST", address, headers=list(headers.items()), content=body) as answer,
        ):
            return answer.status
    except FAILURES as error:
        raise Undelivered(str(error) or type(error).__name__) from error
