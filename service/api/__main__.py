"""The API and the pages as processes: `python -m service.api`."""

import os
import shutil

import uvicorn
from fastapi import FastAPI

from service import logs
from service.api.protocol import GuardedProtocol
from service.app import RATES, create_app
from service.settings import Settings


def serving() -> FastAPI:
    """The application of one process of the API, which logs as the first one does."""
    logs.setup()
    return create_app()


def main() -> None:
    """Serve until SIGTERM or SIGINT. Our own log has a line a request, uvicorn's is off."""
    logs.setup()
    settings = Settings()
    if settings.servers > 1:
        _share_metrics(settings)
        (settings.data_dir / RATES).unlink(missing_ok=True)
    uvicorn.run(
        "service.api.__main__:serving",
        factory=True,
        workers=settings.servers,
        host=settings.host,
        port=settings.port,
        http=GuardedProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=5,
    )


def _share_metrics(settings: Settings) -> None:
    """A scrape reaches one process and asks for all: they count in files, anew at every start."""
    folder = settings.data_dir / "metrics"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)


if __name__ == "__main__":
    main()
