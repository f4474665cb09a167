"""How many requests a caller may send, counted once for all processes of the API."""

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
"""A caller's digest, and when its allowance will be whole again on the machine's monotonic clock."""
SLOTS = 16_384
TRIED = 8
"""Neighbouring slots that one caller may stand in."""
LOCK_TRIES = 200


class Rates:
    """`burst` requests at once and `rate` a second after that, for every caller.

    The table has a fixed size. Processes that name the same file share it; without a file it is this
    process's own. A slot whose time has passed says no more than an empty one and is used again.
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
        """Count one request. Raises ApiError with Retry-After where the caller has none left."""
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
            f"at most {self._rate:g} requests a second",
            headers={"Retry-After": str(max(1, math.ceil(wait)))},
        )

    def _find(self, name: int, first: int, moment: float) -> tuple[int, float]:
        """The slot of a caller, else the one that can best be spared; and when its allowance is whole."""
        spared, soonest = first, math.inf
        for place in range(first, first + TRIED):
            holder, whole_at = SLOT.unpack_from(self._table, place * SLOT.size)
            # A time that this rate cannot lead to was written before the machine was started anew.
            whole_at = whole_at if whole_at <= moment + self._most + self._gap else 0.0
            if holder == name:
                return place, whole_at
            if whole_at < soonest:
                spared, soonest = place, whole_at
        return spared, moment

    @contextmanager
    def _alone(self, first: int) -> Iterator[None]:
        """Keep other processes from the slots around `first`, unless one of them is stopped while it does."""
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
