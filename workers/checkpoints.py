"""Checkpoints in shared storage, written atomically and verified on reading.

Those of a stage are in the folder of its run, where the newest and the best are kept; the checkpoint of an
unfinished scion is in the bank, so that the next run that needs the scion resumes it.
"""

import math
import re
import time
from collections.abc import Mapping, Sequence

from torch import Tensor

from grafting_core.storage.bank import Bank
from grafting_core.storage.checksums import set_aside
from grafting_core.storage.storage import Storage
from grafting_core.storage.tensor_files import StoredTensors, read_tensors, write_tensors
from workers.contract import BEST, BestCheckpoint, RunTicket, best_in, checkpoints_folder

NAME = re.compile(r"[0-9]+-a[0-9]+\.safetensors")


class StoredCheckpoints:
    """Files with checksums, `<step>-a<attempt>.safetensors`, and `best.json` if the best is kept.

    The attempt is in the name so that a stale worker cannot overwrite files of its successor. Checkpoints of
    the same step are equal, so the newest intact one of any attempt is used.
    """

    def __init__(self, storage: Storage, ticket: RunTicket, stage_key: str, part: str = "") -> None:
        self._storage, self._ticket = storage, ticket
        self._folder = f"{checkpoints_folder(ticket.run_id)}/{stage_key}{part}"
        self._saved = time.monotonic()

    def _names(self) -> list[str]:
        return [name for name in self._storage.names(self._folder) if NAME.fullmatch(name)]

    def latest(self) -> tuple[int, StoredTensors] | None:
        """Step and tensors of the newest intact checkpoint; damaged ones are set aside."""
        for name in reversed(self._names()):
            tensors = intact_tensors(self._storage, f"{self._folder}/{name}")
            if tensors is not None:
                return int(name.split("-")[0]), tensors
        return None

    def due(self) -> bool:
        return time.monotonic() - self._saved >= self._ticket.checkpoint_seconds

    def save(self, step: int, tensors: Mapping[str, Tensor], loss: float | None = None) -> None:
        name = f"{step:08d}-a{self._ticket.attempt:04d}.safetensors"
        write_tensors(self._storage, f"{self._folder}/{name}", tensors)
        self._saved = time.monotonic()
        best = self._best(name, loss) if self._ticket.keep_best else None
        for old in self._names()[: -self._ticket.keep_checkpoints]:
            if old != best:
                self._storage.delete(f"{self._folder}/{old}")

    def _best(self, name: str, loss: float | None) -> str | None:
        """Record the new checkpoint if it is the best; name of the best, None if none has a loss."""
        known = best_in(self._storage, self._folder)
        if loss is None or not math.isfinite(loss) or (known is not None and known.loss <= loss):
            return known.name if known else None
        self._storage.write_model(f"{self._folder}/{BEST}", BestCheckpoint(name=name, loss=loss))
        return name


def intact_tensors(storage: Storage, path: str) -> StoredTensors | None:
    """Tensors of a file with checksum; None if it is missing, or damaged, and then it is set aside."""
    try:
        return read_tensors(storage, path)
    except FileNotFoundError:
        return None
    except ValueError as error:
        set_aside(storage, path, str(error))
        return None


class SharedCheckpoints:
    """Checkpoints of a worker group: every rank reads, only rank 0 writes, since all hold the same state."""

    def __init__(self, stored: StoredCheckpoints, rank: int) -> None:
        self._stored, self._rank = stored, rank

    def latest(self) -> tuple[int, StoredTensors] | None:
        return self._stored.latest()

    def due(self) -> bool:
        return self._rank == 0 and self._stored.due()

    def save(self, step: int, tensors: Mapping[str, Tensor], loss: float | None = None) -> None:
        if self._rank == 0:
            self._stored.save(step, tensors, loss)


class ScionProgress:
    """Progress of unfinished scions: one file for each, replaced as a whole, possibly by another run.

    Scions of a pass may be at different steps when it is resumed: a process can be killed between two files.
    The result of a step does not depend on the process that computed it.
    """

    def __init__(self, storage: Storage, bank: Bank, keys: Sequence[str], seconds: float) -> None:
        self._storage, self._keys, self._seconds = storage, keys, seconds
        self._paths = {key: f"{bank.folder(key)}/progress" for key in keys}
        self._saved = time.monotonic()

    def latest(self) -> tuple[int, dict[str, Tensor]] | None:
        """Tensors of all intact files; a scion with a damaged file starts over."""
        tensors: dict[str, Tensor] = {}
        for path in self._paths.values():
            tensors |= intact_tensors(self._storage, path) or {}
        return (0, tensors) if tensors else None

    def due(self) -> bool:
        return time.monotonic() - self._saved >= self._seconds

    def save(self, step: int, tensors: Mapping[str, Tensor], loss: float | None = None) -> None:
        """Write one file for each scion; tensor names begin with its key."""
        for key, path in self._paths.items():
            own = {name: value for name, value in tensors.items() if name.startswith(f"{key}/")}
            write_tensors(self._storage, path, own)
        self._saved = time.monotonic()
