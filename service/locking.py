"""Lock of a data folder: the process that holds it runs the lab, whatever any file says."""

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path

import psutil

LOCK_FILE = "lab.lock"
PATIENCE_SECONDS = 1.0
"""Time to retry: a process that only checks the lock holds it for a moment."""


class FolderHeld(Exception):
    """Another process has the lock of this folder."""


class Held:
    """Lock of a folder, held until `close`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def close(self) -> None:
        """Release the folder; calling it again changes nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def hold(folder: Path) -> Held:
    """Lock an existing folder. Raises FolderHeld or OSError."""
    # A symbolic link here is not followed: another user may have made it.
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
    """Check whether a lab runs on the folder; False if the lock file cannot be opened."""
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
    """Return the process that has the folder's lock file open; None if it cannot be seen.

    It may belong to another user or run in another container. The process id in the file is only tried
    first: it may have been reused since.
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
    """Compare by device and inode, so that links, mounts and other names of the folder do not matter."""
    try:
        lock = file.stat()
        opened = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False
    for descriptor in opened:
        with suppress(OSError):
            if os.path.samestat(descriptor.stat(), lock):
                return True
    return False
