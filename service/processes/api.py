"""The API and the pages: `python -m service.processes.api [--workers N]`."""

import argparse
import gc
import os
import shutil
import socket
import sys
from contextlib import suppress

import uvicorn
from fastapi import FastAPI
from uvicorn.supervisors import Multiprocess

from service.api.middleware.http_protocol import SlowlorisGuard
from service.app import RATES, create_app
from service.logging import setup_logging
from service.settings import Settings
from service.startup import settings_of_part


def serving() -> FastAPI:
    """Create the application of one API process, with the logging of the first one."""
    setup_logging()
    app = create_app()
    # The objects made at start-up live as long as the process. Unless frozen, every full garbage collection
    # walks them again during some request, which takes a tenth of a second.
    gc.collect()
    gc.freeze()
    return app


def main() -> None:
    """Serve until SIGTERM or SIGINT. Our own log has a line per request, uvicorn's is off."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, help="processes that answer requests; GRAFTLAB_API_PROCESSES")
    workers = parser.parse_args().workers
    if workers is not None:
        os.environ["GRAFTLAB_API_PROCESSES"] = str(workers)  # each process sizes its share by the total
    setup_logging()
    settings = settings_of_part()
    if settings.api_processes > 1:
        _share_metrics(settings)
        (settings.data_dir / RATES).unlink(missing_ok=True)
    config = uvicorn.Config(
        "service.processes.api:serving",
        factory=True,
        workers=settings.api_processes,
        host=settings.host,
        port=settings.port,
        http=SlowlorisGuard,
        ws="none",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    inherited = settings.listen_fd
    _serve(config, config.bind_socket() if inherited is None else socket.socket(fileno=inherited))


def _serve(config: uvicorn.Config, listening: socket.socket) -> None:
    """Serve on an already listening socket, which `uvicorn.run` cannot."""
    if config.workers > 1:
        return Multiprocess(config, sockets=[listening]).run()
    server = uvicorn.Server(config)
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listening])
    if not server.started:
        sys.exit(3)
    return None


def _share_metrics(settings: Settings) -> None:
    """Make all processes count metrics in shared files, as a scrape reaches only one; emptied at each
    start.
    """
    folder = settings.data_dir / "metrics"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)


if __name__ == "__main__":
    main()
