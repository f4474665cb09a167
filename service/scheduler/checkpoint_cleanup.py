"""Periodic deletion of surplus checkpoints of ended runs, a few runs at a time."""

import logging
import threading

from grafting_core.storage.storage import Storage
from service.control import Control, run_periodically
from service.db.engine import Database
from service.domain.checkpoint_retention import (
    EndedRun,
    Policy,
    note_pruned,
    prune,
    runs_to_prune,
    surplus,
)
from service.log_once import AWAY, Once, brief
from service.settings import Settings

log = logging.getLogger("graftlab.scheduler")
RUNS = 200
"""Limit of runs examined per round."""
PAUSE_SECONDS = 5.0


class CheckpointCleaner:
    """Deletes surplus checkpoints: each run is examined after its end and again when it is old."""

    def __init__(self, settings: Settings, database: Database, storage: Storage) -> None:
        self._policy = Policy.of(settings)
        self._say = Once(log)
        self._refused: set[str] = set()
        self._database, self._storage = database, storage

    def round(self) -> int:
        """Delete surplus checkpoints; return how many runs were examined. Safe to kill and to repeat."""
        with self._database.reading() as session:
            runs = runs_to_prune(session, self._policy, RUNS + len(self._refused))
        # Runs whose files could not be deleted are retried when there is nothing else to do.
        runs = ([run for run in runs if run.id not in self._refused] or runs)[:RUNS]
        clean = [run for run in runs if self._is_clean(run)]
        if clean:
            with self._database.writing() as session:
                note_pruned(session, clean, self._policy)
        return len(runs)

    def _is_clean(self, run: EndedRun) -> bool:
        """Delete surplus checkpoints of one run; True if there were none."""
        try:
            files = surplus(self._storage, run, self._policy)
            if not files.paths:
                return True
            deleted = prune(self._database, self._storage, files, self._policy)
            self._say.well(run.id)
            self._refused.discard(run.id)
        except AWAY:
            raise
        except Exception as error:  # noqa: BLE001 - an error with one run's files must not stop the others
            text = f"run {run.id}: its checkpoints will be deleted in a later round: {brief(error)}"
            self._say(run.id, text, level=logging.ERROR, trace=True)
            self._refused.add(run.id)
            return False
        if deleted:
            log.info("run %s: %s checkpoint files deleted", run.id, len(files.paths))
        return False


def clean_up_checkpoints(control: Control, ended: threading.Event) -> threading.Thread:
    """Start the thread that deletes checkpoints while this process leads."""
    cleaner = CheckpointCleaner(control.settings, control.database, control.storage)
    return run_periodically(control, ended, "checkpoint clean-up", PAUSE_SECONDS, cleaner.round)
