"""Rate limit of callers, shared by all processes of the API."""

import fcntl
import math
import mmap
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from service.api.problems import ApiError

SLOT = struct.Struct("<Qd")
"""Digest of a caller, and the monotonic time at which its full allowance is restored."""
SLOTS = 16_384
TRIED = 8
"""Number of neighbouring slots in which a caller may be stored."""
LOCK_TRIES = 200


class Rates:
    """Allows each caller `burst` requests at once and `rate` per second after that.

    The table has a fixed size. Processes that name the same file share it; without a file it belongs to
    this process. A slot whose time has passed equals an empty one and is reused.
    """

    def __init__(
        self, rate: float, burst: int, file: Path | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate, self._gap, self._clock = rate, 1 / rate, clock
        self._most = burst / rate
        size = (SLOTS + TRIED) * SLOT.size
        self._file = None if file is None else _opened(file, size)
        self._table = mmap.mmap(-1 if self._file is None else self._file, size)

    def take(self, caller: str) -> None:
        """Count one request. Raises ApiError with Retry-After if the caller has none left."""
        name = int.from_bytes(sha256(caller.encode()).digest()[:8]) or 1
        first = name % SLOTS
        with self._alone(first):
            moment = self._clock()
            place, whole_at = self._find(name, first, moment)
            after = max(whole_at, moment) + self._gap
            wait = after - moment - self._most
            if wait <= self._gap / 1000:
                SLOT.pack_into(self._table, place * SLOT.size, name, after)
                return
        raise ApiError(
            "too-many-requests",
            f"at most {self._rate:g} requests per second",
            headers={"Retry-After": str(max(1, math.ceil(wait)))},
        )

    def _find(self, name: int, first: int, moment: float) -> tuple[int, float]:
        """Return the caller's slot, or the one to overwrite, and the time at which its allowance is full."""
        reusable, soonest = first, math.inf
        for place in range(first, first + TRIED):
            holder, whole_at = SLOT.unpack_from(self._table, place * SLOT.size)
            # A time further ahead than this rate can produce was written before the machine was restarted.
            whole_at = whole_at if whole_at <= moment + self._most + self._gap else 0.0
            if holder == name:
                return place, whole_at
            if whole_at < soonest:
                reusable, soonest = place, whole_at
        return reusable, moment

    @contextmanager
    def _alone(self, first: int) -> Iterator[None]:
        """Lock the slots around `first` against other processes; after LOCK_TRIES go on without the lock.

        A process stopped while it holds the lock must not block all others.
        """
        if self._file is None:
            yield
            return
        length, start = TRIED * SLOT.size, first * SLOT.size
        locked = any(_locks(self._file, length, start) for _ in range(LOCK_TRIES))
        try:
            yield
        finally:
            if locked:
                fcntl.lockf(self._file, fcntl.LOCK_UN, length, start)


def _opened(file: Path, size: int) -> int:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.ftruncate(descriptor, size)
    return descriptor


def _locks(descriptor: int, length: int, start: int) -> bool:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
    except OSError:
        time.sleep(0)
        return False
    return True
