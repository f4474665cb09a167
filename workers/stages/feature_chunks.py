"""Chunks of an evaluation: features and hashes of samples, from which all metrics are computed.

Chunks have checksums: a damaged one is set aside when an attempt begins, and made again.
"""

import io
from dataclasses import dataclass

import numpy as np

from grafting_core.evaluation.evaluate import EvaluatedChunk
from grafting_core.evaluation.features.base import Features
from grafting_core.storage.checksums import keep_intact, verify_checksum, with_checksum
from grafting_core.storage.storage import Storage

SUFFIX = ".chunk"
PARTS = ("pool", "spatial", "logits")


@dataclass(frozen=True)
class Chunks:
    """Chunks of one evaluation by the index of their first sample; writing one twice is harmless."""

    storage: Storage
    key: str

    def has(self, first: int) -> bool:
        """Whether the chunk exists and is intact."""
        return keep_intact(self.storage, self._path(first))

    def add(self, chunk: EvaluatedChunk) -> None:
        parts = {name: getattr(chunk.features, name) for name in PARTS}
        kept = {name: rows for name, rows in parts.items() if rows is not None}
        buffer = io.BytesIO()
        np.savez(buffer, asked=chunk.targets, hashes=chunk.hashes, **kept)
        self.storage.write_bytes(self._path(chunk.first), with_checksum(buffer.getvalue()))

    def all(self) -> list[EvaluatedChunk]:
        """All chunks in index order. Raises ValueError if one is damaged; the next attempt makes it again."""
        names = self.storage.names(f"evaluations/{self.key}/chunks")
        return [self._read(name) for name in names if name.endswith(SUFFIX)]

    def _read(self, name: str) -> EvaluatedChunk:
        raw = io.BytesIO(verify_checksum(self.storage.read_bytes(f"evaluations/{self.key}/chunks/{name}")))
        with np.load(raw, allow_pickle=False) as arrays:
            features = Features(arrays["pool"], arrays.get("spatial"), arrays.get("logits"))
            first = int(name.removesuffix(SUFFIX))
            return EvaluatedChunk(first, features, arrays["asked"], arrays["hashes"])

    def _path(self, first: int) -> str:
        return f"evaluations/{self.key}/chunks/{first:08d}{SUFFIX}"
