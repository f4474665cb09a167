"""What costs more to read than it changes: the lab's past runs, which forecasts are made from."""

import time

from sqlalchemy.orm import Session

from service.domain.forecast import PastRun, history

FRESH_SECONDS = 10.0


class ForecastCache:
    """Of one process; a finished run enters forecasts within seconds."""

    def __init__(self) -> None:
        self._past: dict[str, tuple[float, list[PastRun]]] = {}

    def past(self, session: Session, backbone: str) -> list[PastRun]:
        """The lab's finished grafts of a backbone, at most ten seconds old; one where there are none."""
        until, found = self._past.get(backbone, (0.0, []))
        if until < time.monotonic():
            found = history(session, backbone)
            self._past[backbone] = (time.monotonic() + (FRESH_SECONDS if found else 1.0), found)
        return found
