"""Progress and stop requests of long work on data."""

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Takes how many of how many are done, and of what."""
Stop = Callable[[], bool]
"""Whether the work should end at the next place from which it can go on."""


class StopRequested(Exception):
    """Raised by work after a stop request, once its results so far are saved."""


def no_progress(done: int, total: int, what: str) -> None:
    """Ignore the call."""


def never_stop() -> bool:
    """False: the work runs to its end."""
    return False
