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
