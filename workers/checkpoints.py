"""Checkpoints in shared storage, whole and verified on reading.

A stage's lie in its run's folder, where the last few and the best are kept; an unfinished scion's lies in the
bank, where whoever needs that scion next goes on from it.
"""

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from grafting_core.storage.bank import Bank
from grafting_core.storage.checksums import verify_checksum, with_checksum
from grafting_core.storage.storage import Storage
from workers.contract import BEST, BestCheckpoint, RunTicket, best_in, checkpoints_folder

log = logging.getLogger(__name__)


class StoredCheckpoints:
    """Files with checksums, `<step>-a<attempt>.safetensors`, and `best.json` if the best is kept.

    The attempt in the name keeps a stale worker from overwriting its successor's; the content of equal
    steps is equal, so the newest intact one of any attempt serves.
    """

    def __init__(self, storage: Storage, ticket: RunTicket, stage_key: str, part: str = "") -> None:
        self._storage, self._ticket = storage, ticket
        self._folder = f"{checkpoints_folder(ticket.run_id)}/{stage_key}{part}"
        self._saved = time.monotonic()

    def _names(self) -> list[str]:
        return [name for name in self._storage.names(self._folder) if name.endswith(".safetensors")]

    def latest(self) -> tuple[int, dict[str, Tensor]] | None:
        """The newest intact one; damaged ones are set aside as `<name>.damaged` and logged."""
        for name in reversed(self._names()):
            path = f"{self._folder}/{name}"
            try:
                return int(name.split("-")[0]), unsealed(self._storage.read_bytes(path))
            except FileNotFoundError:
                continue  # dropped since we looked, because a newer one is there
            except (ValueError, SafetensorError, json.JSONDecodeError) as error:
                log.warning("checkpoint %s is damaged (%s); the one before it is used", path, error)
                self._storage.move(path, f"{path}.damaged")
        return None

    def due(self) -> bool:
        return time.monotonic() - self._saved >= self._ticket.checkpoint_seconds

    def save(self, step: int, tensors: Mapping[str, Tensor], loss: float | None = None) -> None:
        content = save(_portable(tensors))
        name = f"{step:08d}-a{self._ticket.attempt:04d}.safetensors"
        self._storage.write_bytes(f"{self._folder}/{name}", with_checksum(content))
        self._saved = time.monotonic()
        best = self._best(name, loss) if self._ticket.keep_best else None
        for old in self._names()[: -self._ticket.keep_checkpoints]:
            if old != best:
                self._storage.delete(f"{self._folder}/{old}")

    def _best(self, name: str, loss: float | None) -> str | None:
        """Name of the best one so far, this one included; None while none has a loss."""
        known = best_in(self._storage, self._folder)
        if loss is None or not math.isfinite(loss) or (known is not None and known.loss <= loss):
            return known.name if known else None
        self._storage.write_model(f"{self._folder}/{BEST}", BestCheckpoint(name=name, loss=loss))
        return name


def unsealed(data: bytes) -> dict[str, Tensor]:
    """Tensors of a file with checksum. Raises ValueError where the content does not match its digest."""
    tensors: dict[str, Tensor] = load(verify_checksum(data))
    return tensors


class SharedCheckpoints:
    """Every rank reads; only rank 0 writes, since all hold the same state."""

    def __init__(self, stored: StoredCheckpoints, rank: int) -> None:
        self._stored, self._rank = stored, rank

    def latest(self) -> tuple[int, dict[str, Tensor]] | None:
        return self._stored.latest()

    def due(self) -> bool:
        return self._rank == 0 and self._stored.due()

    def save(self, step: int, tensors: Mapping[str, Tensor], loss: float | None = None) -> None:
        if self._rank == 0:
            self._stored.save(step, tensors, loss)


class ScionProgress:
    """One file a scion, replaced as a whole; another run, or other workers, may have written the last.

    Scions of a pass may stand at different steps when the pass is taken up again: a process can be killed
    between two files. What a step yields does not depend on who took it.
    """

    def __init__(self, storage: Storage, bank: Bank, keys: Sequence[str], seconds: float) -> None:
        self._storage, self._keys, self._seconds = storage, keys, seconds
        self._paths = {key: f"{bank.folder(key)}/progress" for key in keys}
        self._saved = time.monotonic()

    def latest(self) -> tuple[int, dict[str, Tensor]] | None:
        """All tensors that are there and intact; a damaged file means that its scion starts over."""
        tensors: dict[str, Tensor] = {}
        for path in self._paths.values():
            if self._storage.exists(path):
                tensors |= self._read(path)
        return (0, tensors) if tensors else None

    def _read(self, path: str) -> dict[str, Tensor]:
        try:
            return unsealed(self._storage.read_bytes(path))
        except (ValueError, SafetensorError, json.JSONDecodeError) as error:
            log.warning("progress %s is damaged (%s); this scion starts over", path, error)
            self._storage.move(path, f"{path}.damaged")
            return {}

    def due(self) -> bool:
        return time.monotonic() - self._saved >= self._seconds

    def save(self, step: int, tensors: Mapping[str, Tensor], loss: float | None = None) -> None:
        """Names begin with the scion's key."""
        for key, path in self._paths.items():
            own = {name: value for name, value in tensors.items() if name.startswith(f"{key}/")}
            self._storage.write_bytes(path, with_checksum(save(_portable(own))))
        self._saved = time.monotonic()


def _portable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
