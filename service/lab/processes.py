"""Find the processes of a lab, and end them without touching any other."""

import os
import signal
import subprocess
from pathlib import Path

import psutil

MARK = "GRAFTLAB_LAB"
PART = "GRAFTLAB_PART"
INSTANCE = "GRAFTLAB_LAB_ID"
"""Variables that every process of a lab inherits: mark of the data folder, part, and id of the start."""
GUARDIAN = "guardian"
STOP_SECONDS = 12.0
PASSES = 5
"""Repetitions of the search: a process may start another while it is being ended."""


def mark_of(folder: Path) -> str:
    """Return an id of the folder itself, equal for all its names, links and mounts."""
    status = folder.stat()
    return f"{status.st_dev:x}-{status.st_ino:x}"


def end_politely(process: subprocess.Popen[bytes] | None, seconds: float = STOP_SECONDS) -> None:
    """Send SIGTERM, then SIGKILL if the process does not end in time."""
    if process is None or process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def end_strays(mark: str, part: str | None = None, instance: str | None = None) -> int:
    """Kill the processes with this mark (and part, and start) and their children, except this one.

    Returns their number. The guardian that is a child of this process is spared.
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
    """Find the marked processes and their descendants.

    Some of Ray's overwrite their environment with a title; they are found through their parents.
    """
    running = {process.pid: process for process in psutil.process_iter()}
    ours = {pid for pid, process in running.items() if _carries(process, mark, part, instance)}
    spared = {os.getpid(), *_children_to_spare()}
    parents = {pid: _parent(process) for pid, process in running.items()}
    while more := {pid for pid, parent in parents.items() if parent in ours and pid not in ours | spared}:
        ours |= more
    return [running[pid] for pid in sorted(ours - spared)]


def _children_to_spare() -> set[int]:
    """Return the guardian of this supervisor; one that outlived its supervisor has another parent."""
    return {child.pid for child in psutil.Process().children() if _environment(child).get(PART) == GUARDIAN}


def _carries(process: psutil.Process, mark: str, part: str | None, instance: str | None) -> bool:
    variables = _environment(process)
    return (
        variables.get(MARK) == mark
        and part in (None, variables.get(PART))
        and instance in (None, variables.get(INSTANCE))
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
    """Check whether `ancestor` is among the process's parents."""
    try:
        return ancestor in {parent.pid for parent in process.parents()}
    except psutil.Error:
        return False
