"""A lab as a user starts it, by `graft up`, in a process of its own."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from service.lab.address import LabAddress, read_address

GRAFT = (sys.executable, "-m", "service.cli.main")


@dataclass(frozen=True)
class RunningLab:
    """A running `graft up`, which restarts its processes itself."""

    folder: Path
    process: subprocess.Popen[bytes]
    address: LabAddress


@contextmanager
def running_lab(
    folder: Path, environment: Mapping[str, str] = {}, code: Path | None = None
) -> Iterator[RunningLab]:
    """Start a lab of two CPUs over the folder and yield it when it is ready; end it afterwards.

    `code` is a folder with other copies of the packages.
    """
    path = {"PYTHONPATH": str(code)} if code else {}
    printed = folder / "printed"
    words = ("up", "--data", str(folder), "--port", "0", "--cpus", "2")
    with printed.open("wb") as file:
        process = subprocess.Popen(
            [*GRAFT, *words],
            stdout=file,
            stderr=file,
            start_new_session=True,
            env={**os.environ, **path, **environment},
            cwd=code,
        )
    try:
        until(lambda: "Ctrl-C" in printed.read_text() or process.poll() is not None, 150)
        address = read_address(folder)
        assert address, printed.read_text()
        yield RunningLab(folder, process, address)
    finally:
        process.terminate()
        process.wait(60)


def until(done: Callable[[], bool], seconds: float = 240) -> None:
    """Wait until `done` returns True."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it did not come to that in time"
        time.sleep(0.2)
