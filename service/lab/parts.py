"""One process of the lab, started with its own log, from which the cause of its death is read."""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

BACK_OFF = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)
OPTIONAL = ("mlflow", "tracking")
"""Parts without which the lab works: what they show can be rebuilt from the lab's own database."""
OPTIONAL_SECONDS = 60.0
"""Wait between two attempts to start an optional part that keeps dying."""
LOG_BYTES = 20 * 2**20
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
READ_BYTES = 64 * 1024
LONGEST_WORDS = 400


@dataclass
class Part:
    """One supervised process."""

    name: str
    command: list[str]
    process: subprocess.Popen[bytes] | None = None
    restarts: int = 0
    due: float = 0.0
    """Time of the next start; 0 until its end has been noticed."""
    started: float = 0.0
    log_begins: int = 0
    """Offset at which the log of this process begins in the part's file."""

    @property
    def has_ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def spawn(self, environment: Mapping[str, str], logs: Path, descriptors: tuple[int, ...] = ()) -> None:
        """Start it, in its own session and in a folder where no file can shadow a module.

        Raises OSError if the system cannot start a process now.
        """
        logs.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self.log(logs).open("ab") as log:
            self.log_begins = log.tell()
            self.process = subprocess.Popen(
                self.command,
                env=dict(environment),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=descriptors,
            )
        self.due, self.started = 0.0, time.monotonic()

    def log(self, logs: Path) -> Path:
        return logs / f"{self.name}.log"

    def put_off(self) -> None:
        """Set the time of its next start: later each time if it keeps dying."""
        wait = BACK_OFF[min(self.restarts, len(BACK_OFF) - 1)]
        if self.name in OPTIONAL and self.restarts >= len(BACK_OFF):
            wait = OPTIONAL_SECONDS
        self.due = time.monotonic() + wait

    def last_words(self, logs: Path) -> str:
        """Return the last line that it printed, without the frame of a log line or a traceback."""
        try:
            with self.log(logs).open("rb") as log:
                end = log.seek(0, os.SEEK_END)
                log.seek(max(min(self.log_begins, end), end - READ_BYTES))
                lines = log.read().decode(errors="replace").splitlines()
        except OSError:
            return "its log cannot be read"
        printed = [line.strip() for line in lines if line.strip()]
        return _plain(printed[-1])[:LONGEST_WORDS] if printed else "it printed nothing"


def _plain(line: str) -> str:
    """Return the message of a JSON log line; for an error, its last line."""
    try:
        record = json.loads(line)
        error = str(record.get("error") or "").strip().splitlines()
        return error[-1] if error else str(record["message"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return COLOURS.sub("", line)


def shorten(log: Path, most: int = LOG_BYTES) -> None:
    """Copy a log that has grown too long to `<log>.1` and empty it.

    It is not renamed: the process that writes it keeps writing to the same file.
    """
    if log.stat().st_size <= most:
        return
    older = log.with_name(f"{log.name}.1")
    shutil.copyfile(log, older)
    older.chmod(0o600)
    os.truncate(log, 0)
