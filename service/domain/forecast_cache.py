"""Cache of the lab's past runs, which forecasts are made from."""

import time

from sqlalchemy.orm import Session

from service.domain.forecast import PastRun, history

FRESH_SECONDS = 10.0


class ForecastCache:
    """Ten-second cache of past runs of one process."""

    def __init__(self) -> None:
        self._past: dict[str, tuple[float, list[PastRun]]] = {}

    def past(self, session: Session, backbone: str) -> list[PastRun]:
        """Return finished grafts of a backbone, at most ten seconds old, or one second if there are none."""
        until, runs = self._past.get(backbone, (0.0, []))
        if until < time.monotonic():
            runs = history(session, backbone)
            self._past[backbone] = (time.monotonic() + (FRESH_SECONDS if runs else 1.0), runs)
        return runs
