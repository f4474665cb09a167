"""What arrives on the wire before it is a request: too much, too slowly, or without end."""

import contextlib
import socket
from collections.abc import Iterator

import pytest

from service.api.middleware import http_protocol, limits
from service.settings import Settings
from tests.support.api_server import serving


@pytest.fixture
def port(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The application on a real socket, with patience of a second."""
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS", 1.0)
    monkeypatch.setattr(limits, "BODY_SECONDS", 1.0)
    with serving(settings) as made:
        yield made


def talk(port: int, head: bytes, rest: bytes = b"") -> bytes:
    """What comes back until the other side closes, or has answered."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as line:
        # The other side may close before all is sent; what it had said by then is there to read.
        with contextlib.suppress(ConnectionError):
            line.sendall(head + rest)
        with contextlib.suppress(ConnectionError):
            while b"\r\n\r\n" not in answer and (part := line.recv(65_536)):
                answer += part
    return answer


START = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n"


def test_heads_that_are_too_large_are_refused(port: int) -> None:
    assert b" 200 " in talk(port, START + b"\r\n")
    assert b" 431 " in talk(port, START + b"".join(b"x-%d: 1\r\n" % n for n in range(1000)) + b"\r\n")
    assert b" 431 " in talk(port, START + b"x: " + b"y" * 40_000 + b"\r\n\r\n")
    assert b" 200 " not in talk(port, START + b"x: " + b"y" * 1_000_000)
    assert b" 414 " in talk(port, b"GET /healthz?" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")


def test_endless_bodies_are_not_read_to_their_end(port: int) -> None:
    head = b"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert b" 413 " in talk(port, head, (b"10000\r\n" + b"x" * 65_536 + b"\r\n") * 20)


@pytest.mark.parametrize(
    "head", [b"", b"GET /healthz HT", START, START.replace(b"GET", b"POST") + b"Content-Length: 9\r\n\r\nx"]
)
def test_connections_that_do_not_get_on_are_closed(port: int, head: bytes) -> None:
    answer = talk(port, head)
    assert answer == b"" or b" 408 " in answer or b" 405 " in answer
