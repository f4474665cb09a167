"""Log a fault once, instead of again in every round while it lasts."""

import logging
from collections import OrderedDict
from collections.abc import Hashable

from pydantic import ValidationError
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

MOST = 10_000
"""Limit of remembered items; beyond it the oldest may be logged again."""
AWAY = (OperationalError, InterfaceError, InternalError, PoolTimeout)
"""Errors of a database that does not answer: no item is to blame, and a retry may succeed."""


class Once:
    """Logs each fault of an item once, until `well` is called for the item."""

    def __init__(self, log: logging.Logger) -> None:
        self._log, self._faults = log, OrderedDict[Hashable, str]()

    def __call__(
        self,
        item: Hashable,
        text: str,
        *,
        fault: str | None = None,
        level: int = logging.WARNING,
        trace: bool = False,
    ) -> bool:
        """Log the text, with the current exception if `trace`; return False if it was logged before.

        Two texts with the same `fault` count as the same.
        """
        fault = fault or text
        if self._faults.get(item) == fault:
            self._faults.move_to_end(item)
            return False
        self._faults[item] = fault
        self._faults.move_to_end(item)
        while len(self._faults) > MOST:
            self._faults.popitem(last=False)
        self._log.log(level, "%s", text, exc_info=trace)
        return True

    def well(self, item: Hashable) -> None:
        """Forget the item's fault, so that it will be logged again."""
        self._faults.pop(item, None)


def brief(error: Exception) -> str:
    """Describe an error in one line that can be stored and shown."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        text = f"{'.'.join(map(str, first['loc'])) or 'document'}: {first['msg']}"
    else:
        text = str(error) or type(error).__name__
    return plain(" ".join(text.split()))[:300]


def plain(text: str) -> str:
    """Return the text without what databases reject: zero bytes and lone surrogates."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
