"""Periodic deletion of files of the registry and of exports that nothing needs any more."""

import logging
import threading
import uuid

from grafting_core.storage.folders import delete_folder, withdraw_folder
from grafting_core.storage.storage import Storage
from service.control import Control, run_periodically
from service.domain.registry_files import DELETED, unneeded_folders
from service.log_once import AWAY, Once, brief

log = logging.getLogger("graftlab.scheduler")
PAUSE_SECONDS = 10.0


class RegistryCleaner:
    """Takes unneeded folders out of the registry, then deletes their files."""

    def __init__(self, control: Control) -> None:
        self._control, self._storage = control, control.storage
        self._say = Once(log)

    def round(self) -> int:
        """Delete what nothing needs; return how many folders. Safe to kill and to repeat.

        Folders are moved away in the leader's transaction, so that no registration can start to use one that
        is being deleted. Deleting takes longer, and is done afterwards.
        """
        days = self._control.settings.export_days
        with self._control.database.reading() as session:
            found = unneeded_folders(session, self._storage, days)
        if found:
            with self._control.leading() as session:
                found = unneeded_folders(session, self._storage, days)
                for folder in found:
                    withdraw_folder(self._storage, folder, f"{DELETED}/{uuid.uuid4().hex}")
        for name in self._storage.names(DELETED):
            self._delete(f"{DELETED}/{name}", self._storage)
        if found:
            log.info("registry: %s folders that nothing needs were deleted", len(found))
        return len(found)

    def _delete(self, folder: str, storage: Storage) -> None:
        try:
            delete_folder(storage, folder)
            self._say.well(folder)
        except AWAY:
            raise
        except OSError as error:
            text = f"{folder} will be deleted in a later round: {brief(error)}"
            self._say(folder, text, level=logging.ERROR)


def clean_up_registry(control: Control, ended: threading.Event) -> threading.Thread:
    """Start the thread that deletes unneeded files of the registry while this process leads."""
    cleaner = RegistryCleaner(control)
    return run_periodically(control, ended, "registry clean-up", PAUSE_SECONDS, cleaner.round)
