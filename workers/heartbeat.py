"""A sign of life from a thread of its own, so that a busy training loop does not look dead."""

import os
import signal
import threading
import time

from grafting_core.storage import Storage
from workers.contract import Heartbeat, RunTicket, attempt_folder

SELF_STOP_SECONDS = 40.0
"""A worker that cannot show life for this long ends itself: by now it may have been replaced."""


class HeartbeatThread(threading.Thread):
    """Rewrites the attempt's heartbeat file until stopped."""

    def __init__(self, storage: Storage, ticket: RunTicket) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._storage, self._seconds = storage, ticket.heartbeat_seconds
        self._path = f"{attempt_folder(ticket.run_id, ticket.attempt)}/heartbeat"
        self._stopped = threading.Event()

    def run(self) -> None:
        beat, shown = 0, time.monotonic()
        while not self._stopped.is_set():
            beat += 1
            if self._show(beat):
                shown = time.monotonic()
            elif time.monotonic() - shown > SELF_STOP_SECONDS:
                os.kill(os.getpid(), signal.SIGKILL)
            self._stopped.wait(self._seconds)

    def _show(self, beat: int) -> bool:
        try:
            self._storage.write_model(self._path, Heartbeat(beat=beat, pid=os.getpid()))
        except OSError:
            return False
        return True

    def stop(self) -> None:
        """End the thread and wait for it."""
        self._stopped.set()
        self.join()
