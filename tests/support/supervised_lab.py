"""A supervisor as a separate process, over parts that only wait."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from service.lab.address import LabAddress, read_address
from service.lab.parts import Part
from service.lab.processes import MARK, mark_of
from service.lab.supervisor import Supervisor

NAMES = ("ray", "mlflow", "api", "scheduler", "studies", "tracking")
WAIT = [sys.executable, "-c", "import time; time.sleep(600)"]
PROGRAM = """
import signal, sys, time
from pathlib import Path
from service.cli.discovery import lock
from tests.support.supervised_lab import waiting
if "deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
held = lock(Path(sys.argv[1]))
lab = waiting(Path(sys.argv[1]))
lab.start()
print("started", flush=True)
time.sleep(600)
"""


def waiting(folder: Path, port: int = 0) -> Supervisor:
    """Prepare a lab whose parts only wait; `start` starts them."""
    lab = Supervisor(folder, port, 1)
    lab.prepare()
    lab.parts = [Part(name, WAIT) for name in NAMES]
    return lab


@contextmanager
def supervised(folder: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], LabAddress]]:
    """Start such a lab in another process, which holds its folder, and yield the process and the address."""
    command = [sys.executable, "-c", PROGRAM, str(folder), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "started\n"
            address = read_address(folder)
            assert address is not None
            yield process, address
        finally:
            process.kill()


def left(folder: Path) -> list[str]:
    """Return the command lines of the processes with the folder's mark."""
    mark, found = mark_of(folder), []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except (psutil.Error, OSError):
            continue
    return found


def until(done: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until `done` returns True."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it did not come to that in time"
        time.sleep(0.1)
