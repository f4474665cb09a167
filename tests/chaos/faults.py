"""Faults for a running lab's processes and files, and nothing else on the machine."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from service.lab.processes import GUARDIAN, MARK, PART, mark_of


@dataclass
class Target:
    """The lab of one data folder."""

    folder: Path
    chance: random.Random
    silence_seconds: float
    extra: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def processes(self) -> Iterator[psutil.Process]:
        """Those that carry this lab's mark."""
        mark = mark_of(self.folder)
        for process in psutil.process_iter():
            try:
                found = process.environ()
                if found.get(MARK) == mark and found.get(PART) != GUARDIAN:
                    yield process
            except (psutil.Error, OSError):
                continue

    def part(self, name: str) -> list[psutil.Process]:
        """A part's own process and its children, without what Ray runs for runs."""
        return [process for process in self.processes() if _environ(process).get(PART) == name]

    def running(self, word: str) -> list[psutil.Process]:
        """Processes whose command line has this word."""
        return [process for process in self.processes() if word in _command(process)]


def _environ(process: psutil.Process) -> dict[str, str]:
    try:
        return dict(process.environ())
    except (psutil.Error, OSError):
        return {}


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.Error, OSError):
        return ""


def _send(processes: list[psutil.Process], number: signal.Signals) -> int:
    sent = 0
    for process in processes:
        try:
            os.kill(process.pid, number)
            sent += 1
        except OSError:
            continue
    return sent


def kill(processes: list[psutil.Process]) -> int:
    """How many of them were met."""
    return _send(processes, signal.SIGKILL)


def _kill_part(name: str) -> Callable[[Target], int]:
    return lambda target: kill(target.part(name))


def _kill_one(word: str) -> Callable[[Target], int]:
    def inject(target: Target) -> int:
        found = target.running(word)
        return _send([target.chance.choice(found)], signal.SIGKILL) if found else 0

    return inject


def _freeze(target: Target, found: list[psutil.Process], seconds: float) -> int:
    stopped = _send(found, signal.SIGSTOP)
    time.sleep(seconds if stopped else 0)
    _send(found, signal.SIGCONT)
    return stopped


def _freeze_scheduler(target: Target) -> int:
    """Longer than it leads without renewing, so that the second one takes over."""
    return _freeze(target, target.part("scheduler")[:1], 8.0)


def _freeze_driver(target: Target) -> int:
    """Longer than its silence is borne: a newer attempt takes over, and it must not come back."""
    return _freeze(target, target.running("workers.driver")[:1], target.silence_seconds * 1.2)


def _second_scheduler(target: Target) -> int:
    """One more, with the first one's settings; it takes over whenever the first is killed or frozen."""
    found = target.part("scheduler")
    alive = [process for process in target.extra if process.poll() is None]
    if not found or alive:
        return 0
    environment = {**_environ(found[0]), PART: "scheduler-2"}
    with (target.folder / "logs" / "scheduler-2.log").open("ab") as log:
        words = [_command(found[0]).split(" ")[0], "-m", "service.processes.scheduler"]
        target.extra.append(subprocess.Popen(words, env=environment, stdout=log, stderr=log))
    return 1


def _flip_bit(target: Target) -> int:
    """In the newest checkpoint there is."""
    found = sorted(
        (target.folder / "storage").glob("runs/*/checkpoints/*/*.safetensors"),
        key=lambda path: path.stat().st_mtime,
    )
    if not found:
        return 0
    content = bytearray(found[-1].read_bytes())
    content[target.chance.randrange(len(content))] ^= 1
    found[-1].write_bytes(bytes(content))
    return 1


FAULTS: Mapping[str, Callable[[Target], int]] = {
    "API killed": _kill_part("api"),
    "scheduler killed": _kill_part("scheduler"),
    "tracking killed": _kill_part("tracking"),
    "MLflow killed": _kill_part("mlflow"),
    "Ray head killed": _kill_part("ray"),
    "worker killed": _kill_one("graft_worker"),
    "driver killed": _kill_one("workers.driver"),
    "leader frozen": _freeze_scheduler,
    "driver frozen": _freeze_driver,
    "second scheduler": _second_scheduler,
    "checkpoint damaged": _flip_bit,
}
RARE = frozenset({"Ray head killed", "driver frozen"})
"""They cost the lab the most; injected a quarter as often."""


def inject_fault(target: Target) -> tuple[str, int]:
    """One fault by chance; its name, and how many processes or files it met."""
    weights = [1 if name in RARE else 4 for name in FAULTS]
    name = target.chance.choices(list(FAULTS), weights)[0]
    return name, FAULTS[name](target)
