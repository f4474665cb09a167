"""The periodic removal of checkpoints that ended runs leave behind, a few runs at a time."""

import logging
import threading

from grafting_core.storage.storage import Storage
from service.control import Control, run_periodically
from service.db.engine import Database
from service.domain.checkpoint_retention import EndedRun, Policy, note_pruned, prune, runs_to_prune, surplus
from service.log_once import AWAY, Once, brief
from service.settings import Settings

log = logging.getLogger("graftlab.scheduler")
RUNS = 200
"""That one round looks through."""
PAUSE_SECONDS = 5.0


class CheckpointCleaner:
    """Level-triggered: runs are looked through once after their end and once more when they come of age."""

    def __init__(self, settings: Settings, database: Database, storage: Storage) -> None:
        self._policy = Policy.of(settings)
        self._say = Once(log)
        self._refused: set[str] = set()
        self._database, self._storage = database, storage

    def round(self) -> int:
        """Delete surplus checkpoints; returns how many runs were checked. Safe to kill and to repeat."""
        with self._database.reading() as session:
            runs = runs_to_prune(session, self._policy, RUNS + len(self._refused))
        # Those whose files refuse to go are tried again when there is nothing else to do.
        runs = ([run for run in runs if run.id not in self._refused] or runs)[:RUNS]
        clean = [run for run in runs if self._is_clean(run)]
        if clean:
            with self._database.writing() as session:
                note_pruned(session, clean, self._policy)
        return len(runs)

    def _is_clean(self, run: EndedRun) -> bool:
        """Delete surplus checkpoints of one run; True if there were none."""
        try:
            spare = surplus(self._storage, run, self._policy)
            if not spare.paths:
                return True
            gone = prune(self._database, self._storage, spare, self._policy)
            self._say.well(run.id)
            self._refused.discard(run.id)
        except AWAY:
            raise
        except Exception as error:  # noqa: BLE001 - the files of one run keep no other's
            text = f"run {run.id}: its checkpoints are left for the next round: {brief(error)}"
            self._say(run.id, text, level=logging.ERROR, trace=True)
            self._refused.add(run.id)
            return False
        if gone:
            log.info("run %s: %s checkpoint files deleted", run.id, len(spare.paths))
        return False


def clean_up_checkpoints(control: Control, ended: threading.Event) -> threading.Thread:
    """Start the thread that does it as long as this process leads."""
    keeper = CheckpointCleaner(control.settings, control.database, control.storage)
    return run_periodically(control, ended, "checkpoint clean-up", PAUSE_SECONDS, keeper.round)
