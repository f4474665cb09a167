"""Whose a data folder is: the process that holds its lock runs the lab, whatever any file says."""

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path

import psutil

LOCK_FILE = "lab.lock"
PATIENCE_SECONDS = 1.0
"""Whoever only asks whether the folder is held has the lock for a moment."""


class FolderHeld(Exception):
    """Another process has the lock of this folder."""


class Held:
    """The lock of a folder, for as long as this object is not closed."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def close(self) -> None:
        """Let the folder go; a second time changes nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def hold(folder: Path) -> Held:
    """Take the lock of a folder that exists. Raises FolderHeld or OSError."""
    # A link that somebody laid here is not followed.
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(folder / LOCK_FILE, flags, 0o600)
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError as error:
            if time.monotonic() > end:
                os.close(descriptor)
                raise FolderHeld(str(folder)) from error
            time.sleep(0.05)
    os.ftruncate(descriptor, 0)
    os.write(descriptor, str(os.getpid()).encode())
    return Held(descriptor)


def is_held(folder: Path) -> bool:
    """Whether a lab runs on the folder; False where it cannot be looked at."""
    try:
        descriptor = os.open(folder / LOCK_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


def holder(folder: Path) -> psutil.Process | None:
    """The process that has the folder's lock file open; None where it cannot be seen.

    It may be another user's, or run in another container. The number in the file is where the search
    begins, not what is believed: it may have been given to another process since.
    """
    file = folder / LOCK_FILE
    noted = []
    with suppress(OSError, ValueError):
        noted = [int(file.read_text())]
    for pid in [*noted, *psutil.pids()]:
        if pid != os.getpid() and _has_open(pid, file):
            with suppress(psutil.Error):
                return psutil.Process(pid)
    return None


def _has_open(pid: int, file: Path) -> bool:
    """Compared by device and inode, so that links, mounts and other names of the folder do not matter."""
    try:
        wanted = file.stat()
        opened = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False
    for each in opened:
        with suppress(OSError):
            if os.path.samestat(each.stat(), wanted):
                return True
    return False
