"""The API and the pages as a process: `python -m service.api`."""

import uvicorn

from service import logs
from service.api.protocol import GuardedProtocol
from service.settings import Settings


def main() -> None:
    """Serve until SIGTERM or SIGINT. Our own log has a line a request, uvicorn's is off."""
    logs.setup()
    settings = Settings()
    uvicorn.run(
        "service.app:create_app",
        factory=True,
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


if __name__ == "__main__":
    main()
