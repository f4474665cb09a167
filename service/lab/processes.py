"""Which processes are a lab's, and how they are ended without touching anybody else's."""

import os
import signal
import subprocess
from pathlib import Path

import psutil

MARK = "GRAFTLAB_LAB"
PART = "GRAFTLAB_PART"
INSTANCE = "GRAFTLAB_LAB_ID"
"""Every process of a lab inherits all three: the data folder, the part, and the start of the lab."""
GUARDIAN = "guardian"
STOP_SECONDS = 12.0
PASSES = 5
"""A process may have started another while the first was ended."""


def mark_of(folder: Path) -> str:
    """The same for every name of a folder: through links and mounts, and after it was renamed."""
    found = folder.stat()
    return f"{found.st_dev:x}-{found.st_ino:x}"


def end_politely(process: subprocess.Popen[bytes] | None, seconds: float = STOP_SECONDS) -> None:
    """SIGTERM, then SIGKILL if that is not heeded."""
    if process is None or process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def end_strays(mark: str, part: str | None = None, instance: str | None = None) -> int:
    """Kill the processes that carry this mark (and part, and start), with their children, except ourselves.

    Returns how many there were. The guardian of our own lab is left alone unless it is asked for.
    """
    ended = 0
    for _ in range(PASSES):
        strays = _marked(mark, part, instance)
        if not strays:
            break
        for process in strays:
            try:
                process.kill()
                ended += 1
            except psutil.Error:  # it has ended, or changed its user
                continue
        psutil.wait_procs(strays, timeout=5)
    return ended


def _marked(mark: str, part: str | None, instance: str | None) -> list[psutil.Process]:
    """Some of Ray's have a title where their environment was; their parents still carry the mark."""
    everybody = {process.pid: process for process in psutil.process_iter()}
    ours = {pid for pid, process in everybody.items() if _carries(process, mark, part, instance)}
    spared = {os.getpid(), *_children_to_spare()}
    parents = {pid: _parent(process) for pid, process in everybody.items()}
    while more := {pid for pid, parent in parents.items() if parent in ours and pid not in ours | spared}:
        ours |= more
    return [everybody[pid] for pid in sorted(ours - spared)]


def _children_to_spare() -> set[int]:
    """Our own guardian; one that outlived its supervisor is nobody's child."""
    return {child.pid for child in psutil.Process().children() if _environment(child).get(PART) == GUARDIAN}


def _carries(process: psutil.Process, mark: str, part: str | None, instance: str | None) -> bool:
    found = _environment(process)
    return (
        found.get(MARK) == mark
        and part in (None, found.get(PART))
        and instance in (None, found.get(INSTANCE))
        and process.status() != psutil.STATUS_ZOMBIE
    )


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return dict(process.environ())
    except (psutil.Error, OSError):
        return {}


def _parent(process: psutil.Process) -> int | None:
    try:
        return int(process.ppid())
    except psutil.Error:
        return None


def descends(process: psutil.Process, ancestor: int) -> bool:
    """Whether the ancestor is among its parents."""
    try:
        return ancestor in {parent.pid for parent in process.parents()}
    except psutil.Error:
        return False
