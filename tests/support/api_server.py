"""Serve the application on a real socket, for behaviour that a test client cannot produce."""

import contextlib
import threading
import time
from collections.abc import Iterator

import uvicorn

from service.api.middleware import http_protocol
from service.app import create_app
from service.settings import Settings


@contextlib.contextmanager
def serving(settings: Settings) -> Iterator[int]:
    """Serve the application on a real socket and yield its port."""
    protocol = http_protocol.SlowlorisGuard
    config = uvicorn.Config(create_app(settings), port=0, http=protocol, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
