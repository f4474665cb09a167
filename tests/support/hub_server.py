"""A server with one repository, as the Hugging Face hub serves it."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class HubServer:
    """Its address, and the files that were fetched."""

    url: str = ""
    fetched: list[str] = field(default_factory=list)


@contextmanager
def hub_of(files: Mapping[str, bytes], sizes: Mapping[str, int] | None = None) -> Iterator[HubServer]:
    """Serve the repository `ann/net` with these files; `sizes` are those that its listing says instead."""
    listed = {name: (sizes or {}).get(name, len(content)) for name, content in files.items()}
    siblings = [{"rfilename": name, "size": size} for name, size in listed.items()]
    info = {"id": "ann/net", "sha": COMMIT, "siblings": siblings}
    hub = HubServer()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            path = self.path.partition("?")[0]
            if path.startswith("/api/models/ann/net"):
                return self._send(json.dumps(info).encode(), {"Content-Type": "application/json"}, body)
            name = path.removeprefix(f"/ann/net/resolve/{COMMIT}/")
            if name not in files:
                self.send_error(404)
                return None
            if body:
                hub.fetched.append(name)
            content = files[name]
            etag = hashlib.sha256(content).hexdigest()
            return self._send(content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, body)

        def _send(self, content: bytes, headers: Mapping[str, str], body: bool) -> None:
            self.send_response(200)
            for header, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(header, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
