"""Checkpoints of one stage in shared storage: whole, verified on reading, the last two kept."""

import hashlib
import json
import logging
import time
from collections.abc import Mapping

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from grafting_core.storage import Storage
from workers.contract import RunTicket

log = logging.getLogger(__name__)
KEPT = 2
DIGEST_BYTES = 32


class StoredCheckpoints:
    """Files `<step>-a<attempt>.safetensors`: SHA-256 of the content, then the content.

    The attempt in the name keeps a stale worker from overwriting its successor's; the content of equal
    steps is equal, so the newest intact one of any attempt serves.
    """

    def __init__(self, storage: Storage, ticket: RunTicket, stage_key: str, part: str = "") -> None:
        self._storage, self._attempt = storage, ticket.attempt
        self._folder = f"runs/{ticket.run_id}/checkpoints/{stage_key}{part}"
        self._seconds = ticket.checkpoint_seconds
        self._saved = time.monotonic()

    def _names(self) -> list[str]:
        return [name for name in self._storage.names(self._folder) if name.endswith(".safetensors")]

    def latest(self) -> tuple[int, dict[str, Tensor]] | None:
        """The newest intact one; damaged ones are set aside as `<name>.damaged` and logged."""
        for name in reversed(self._names()):
            path = f"{self._folder}/{name}"
            try:
                return int(name.split("-")[0]), unsealed(self._storage.read_bytes(path))
            except (ValueError, SafetensorError, json.JSONDecodeError) as error:
                log.warning("checkpoint %s is damaged (%s); the one before it is used", path, error)
                self._storage.move(path, f"{path}.damaged")
        return None

    def due(self) -> bool:
        return time.monotonic() - self._saved >= self._seconds

    def save(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        content = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
        name = f"{step:08d}-a{self._attempt:04d}.safetensors"
        self._storage.write_bytes(f"{self._folder}/{name}", sealed(content))
        self._saved = time.monotonic()
        for old in self._names()[:-KEPT]:
            self._storage.delete(f"{self._folder}/{old}")


def sealed(content: bytes) -> bytes:
    """SHA-256 of the content, then the content."""
    return hashlib.sha256(content).digest() + content


def unsealed(data: bytes) -> dict[str, Tensor]:
    """Undo `sealed`. Raises ValueError where the content does not match its digest."""
    expected, content = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != expected:
        raise ValueError("its content does not match its digest")
    tensors: dict[str, Tensor] = load(content)
    return tensors


class SharedCheckpoints:
    """Every rank reads; only rank 0 writes, since all hold the same state."""

    def __init__(self, stored: StoredCheckpoints, rank: int) -> None:
        self._stored, self._rank = stored, rank

    def latest(self) -> tuple[int, dict[str, Tensor]] | None:
        return self._stored.latest()

    def due(self) -> bool:
        return self._rank == 0 and self._stored.due()

    def save(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        if self._rank == 0:
            self._stored.save(step, tensors)
