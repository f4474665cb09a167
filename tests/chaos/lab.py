"""A lab with real Ray as a process of its own, whose patience is short."""

import os
import subprocess
import sys
import time
from pathlib import Path

SILENCE_SECONDS = 15.0
PATIENCE = {
    "SILENCE_SECONDS": SILENCE_SECONDS,
    "LEAD_SECONDS": 5.0,
    "CHECKPOINT_SECONDS": 2.0,
    "RETRY_SECONDS": 0.5,
    "MAX_ATTEMPTS": 100,
}


def start(folder: Path, cpus: int) -> subprocess.Popen[bytes]:
    settings = {f"GRAFTLAB_{name}": str(value) for name, value in PATIENCE.items()}
    words = ("-m", "service.cli.main", "up", "--data", str(folder), "--port", "0", "--cpus", str(cpus))
    printed = folder / "printed"
    with printed.open("wb") as file:
        lab = subprocess.Popen(
            [sys.executable, *words], stdout=file, stderr=file, env={**os.environ, **settings}
        )
    end = time.monotonic() + 240
    while "Ctrl-C" not in printed.read_text():
        if lab.poll() is not None or time.monotonic() > end:
            lab.kill()
            raise SystemExit(f"the lab did not start: {printed.read_text()}")
        time.sleep(0.5)
    return lab
