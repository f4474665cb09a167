"""Named places where a test can make a process die, fail, hang or find no space.

`FAILPOINT=name:action` in the environment arms one, `name:action:3` from its third passing on. Actions:
`kill` (SIGKILL), `raise` (Failed), `sleep` (three seconds), `enospc` (OSError, no space left). Unarmed, a
failpoint costs a comparison.
"""

import errno
import os
import signal
import time
from collections.abc import Callable, Mapping

SLEEP_SECONDS = 3.0

POINTS: Mapping[str, str] = {
    "commit/before": "every write transaction, its work done and not yet durable",
    "commit/after": "every write transaction, durable and nobody told",
    "publish/before": "every file, not begun",
    "publish/written": "every file, written beside its place",
    "publish/after": "every file, in its place and the name not yet synced",
    "ray/submit/before": "a job that Ray has not heard of",
    "ray/submit/after": "a job that Ray has, and nobody noted",
    "ray/stop": "a job that should end",
    "submit": "a submission, stored and not committed",
    "claim": "an attempt, claimed and not committed",
    "event": "an event of a worker, taken in and not committed",
    "heartbeat": "a worker's sign of life",
    "request/{action}": "a user's request, recorded and not committed",
    "request/extend": "an extension, granted and not committed",
    "webhook/announced": "a delivery, written with what it tells of and not committed",
    "webhook/send/before": "a delivery, claimed and not sent",
    "webhook/send/after": "a delivery that the receiver may have, and nobody noted",
    "retention/delete": "a checkpoint of an ended run, gone, and others that should go not yet",
    "migrate/step": "a revision of the schema, applied and not committed",
    "study/measured": "a study's latency table, measured and not noted",
    "study/filled": "a study's bank, filled and not noted",
    "study/proposed": "designs of a study, proposed and not submitted",
    "study/screened": "a screening's numbers, taken in and not committed",
    "study/promoted": "finished designs of a study, collected and not committed",
    "study/learned": "a study's predictions, refitted and not committed",
    "request/priority": "a priority, changed and not committed",
    "move/{from}/{to}": "a run's change of state, decided and not made",
}
"""Every one there is, and what stands where it strikes."""


class Failed(OSError):
    """What an armed failpoint raises: a fault of the neighbourhood, as a lost connection is one."""


def _raise() -> None:
    raise Failed("an armed failpoint")


def _enospc() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


ACTIONS: Mapping[str, Callable[[], None]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "raise": _raise,
    "sleep": lambda: time.sleep(SLEEP_SECONDS),
    "enospc": _enospc,
}


class _Armed:
    """The one armed failpoint of this process."""

    def __init__(self, given: str) -> None:
        self.name, action, first = (*given.split(":"), "", "")[:3]
        self.act = ACTIONS[action] if self.name else lambda: None
        self.left = int(first or 1)


_armed = _Armed(os.environ.get("FAILPOINT", ""))


def arm(given: str) -> None:
    """Arm `name:action[:passing]` here; an empty text disarms. Raises KeyError for other actions."""
    global _armed
    _armed = _Armed(given)


def failpoint(name: str) -> None:
    """Do what was armed for this name."""
    if name == _armed.name:
        _armed.left -= 1
        if _armed.left <= 0:
            _armed.act()
