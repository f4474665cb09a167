"""An HTTP server on loopback that records webhooks and answers as the test has set."""

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class ReceivedRequest:
    """One received request."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class WebhookServer:
    """Server that answers with the next of `answers`, then with 204; 0 means no answer until released."""

    answers: list[int] = field(default_factory=list)
    received: list[ReceivedRequest] = field(default_factory=list)
    arrived: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    port: int = 0

    def url(self, host: str = "127.0.0.1", path: str = "/told") -> str:
        return f"http://{host}:{self.port}{path}"

    @property
    def ids(self) -> list[str]:
        return [request.headers["webhook-id"] for request in self.received]

    def answer(self, request: ReceivedRequest) -> int:
        self.received.append(request)
        self.arrived.set()
        status = self.answers.pop(0) if self.answers else 204
        if not status:
            self.released.wait(30)
        return status or 204


@contextmanager
def serve_webhooks(*answers: int, tls: tuple[Path, Path] | None = None) -> Iterator[WebhookServer]:
    """Start a server; with a certificate and key it uses TLS."""
    webhook_server = WebhookServer(list(answers))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status = webhook_server.answer(ReceivedRequest(self.path, headers, body))
            try:
                self.send_response(status)
                self.send_header("location", webhook_server.url(path="/elsewhere"))
                self.end_headers()
            except OSError:
                return  # the client gave up waiting for a delayed answer

        def log_message(self, format: str, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    webhook_server.port = server.server_address[1]
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield webhook_server
    finally:
        webhook_server.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
