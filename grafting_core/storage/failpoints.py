"""Named points where a test can make a process die, fail, hang or run out of space.

`FAILPOINT=name:action` in the environment arms one, `name:action:3` from its third passing on. Actions:
`kill` (SIGKILL), `raise` (Failed), `sleep` (three seconds), `enospc` (OSError, no space left). An unarmed
failpoint costs one comparison.
"""

import errno
import os
import signal
import time
from collections.abc import Callable, Mapping

SLEEP_SECONDS = 3.0

POINTS: Mapping[str, str] = {
    "commit/before": "every write transaction, before its commit",
    "commit/after": "every write transaction, after its commit, before callers continue",
    "publish/before": "every file, before writing",
    "publish/written": "every file, written under a temporary name",
    "publish/after": "every file, renamed, before the folder is synced",
    "ray/submit/before": "a job, before it is submitted to Ray",
    "ray/submit/after": "a job, submitted to Ray and not recorded",
    "ray/stop": "a job, before Ray stops it",
    "submit": "a submission, stored and not committed",
    "claim": "an attempt, claimed and not committed",
    "event": "a worker's event, applied and not committed",
    "heartbeat": "a worker's heartbeat, before writing",
    "request/{action}": "a user's request, recorded and not committed",
    "request/extend": "an extension, granted and not committed",
    "webhook/announced": "a delivery, written with its cause and not committed",
    "webhook/send/before": "a delivery, claimed and not sent",
    "webhook/send/after": "a delivery, sent and not recorded",
    "retention/delete": "checkpoints of an ended run, one of several deleted",
    "migrate/step": "a revision of the schema, applied and not committed",
    "study/measured": "a study's latency table, measured and not recorded",
    "study/filled": "a study's bank, filled and not recorded",
    "study/proposed": "designs of a study, proposed and not submitted",
    "study/screened": "a screening's values, read and not committed",
    "study/promoted": "finished designs of a study, collected and not committed",
    "study/learned": "a study's predictions, refitted and not committed",
    "request/priority": "a priority, changed and not committed",
    "move/{from}/{to}": "a run's change of state, before it is made",
}
"""Name of every failpoint -> what has happened when it is passed."""


class Failed(OSError):
    """Raised by an armed failpoint; an OSError, like a lost connection."""


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
    """The armed failpoint of this process, if any."""

    def __init__(self, setting: str) -> None:
        self.name, action, first = (*setting.split(":"), "", "")[:3]
        self.act = ACTIONS[action] if self.name else lambda: None
        self.left = int(first or 1)


_armed = _Armed(os.environ.get("FAILPOINT", ""))


def arm(setting: str) -> None:
    """Arm `name:action[:passing]` in this process; empty disarms. Raises KeyError for other actions."""
    global _armed
    _armed = _Armed(setting)


def failpoint(name: str) -> None:
    """Do the armed action if it is armed for this name."""
    if name == _armed.name:
        _armed.left -= 1
        if _armed.left <= 0:
            _armed.act()
