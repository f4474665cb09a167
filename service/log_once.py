"""Saying what is wrong once: a fault that is still there in the next round is no news."""

import logging
from collections import OrderedDict
from collections.abc import Hashable

from pydantic import ValidationError
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

MOST = 10_000
"""Items that are remembered; beyond that the oldest may be named again."""
AWAY = (OperationalError, InterfaceError, InternalError, PoolTimeout)
"""The database does not answer, or not now: no item is to blame, and the same may succeed later."""


class Once:
    """Names each item once for each thing that is wrong with it, until it is well again."""

    def __init__(self, log: logging.Logger) -> None:
        self._log, self._said = log, OrderedDict[Hashable, str]()

    def __call__(
        self,
        item: Hashable,
        text: str,
        *,
        fault: str | None = None,
        level: int = logging.WARNING,
        trace: bool = False,
    ) -> bool:
        """Log the text (with the exception at hand, where `trace`); False where it has been said.

        Two texts of one `fault` are the same news.
        """
        fault = fault or text
        if self._said.get(item) == fault:
            self._said.move_to_end(item)
            return False
        self._said[item] = fault
        self._said.move_to_end(item)
        while len(self._said) > MOST:
            self._said.popitem(last=False)
        self._log.log(level, "%s", text, exc_info=trace)
        return True

    def well(self, item: Hashable) -> None:
        """From now on the same fault is news."""
        self._said.pop(item, None)


def brief(error: Exception) -> str:
    """What is wrong, in one line that can be stored and shown."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        text = f"{'.'.join(map(str, first['loc'])) or 'document'}: {first['msg']}"
    else:
        text = str(error) or type(error).__name__
    return plain(" ".join(text.split()))[:300]


def plain(text: str) -> str:
    """The text without what a database refuses to keep: zero bytes and halves of characters."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
