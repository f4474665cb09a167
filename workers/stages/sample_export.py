"""Samples that an experiment asked to keep: images by chunk while they are made, one file in the end.

evaluations/<key>/images/<first index>.image until the file is there; with checksum
evaluations/<key>/samples.npz, samples.csv   images and who is who
evaluations/<key>/samples.json               written last: holds their digests
"""

import hashlib
import io
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from grafting_core.evaluation.sample_files import ImagePart, as_rgb, manifest, write_npz
from grafting_core.specs.base import Frozen
from grafting_core.specs.plans import EvaluationProtocol
from grafting_core.storage.artifacts import digest_of
from grafting_core.storage.checksums import (
    keep_intact,
    read_with_digest,
    set_aside,
    verify_checksum,
    with_checksum,
    write_with_digest,
)
from grafting_core.storage.storage import Storage

SUFFIX = ".image"


class KeptCard(Frozen):
    """What a whole file looks like."""

    samples: int
    bytes: int
    sha256: dict[str, str] = {}
    """By name of the file; cards of an older version have none."""


@dataclass(frozen=True)
class KeptSamples:
    """One evaluation's images in storage; where they are not wanted, nothing happens."""

    storage: Storage
    key: str
    protocol: EvaluationProtocol
    wanted: bool

    @property
    def artifacts(self) -> dict[str, str]:
        """Names in the stage's report."""
        names = ("samples.npz", "samples.csv") if self.wanted else ()
        return {name: self._path(name) for name in names}

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        if not self.wanted:
            return True
        if not all(self.storage.exists(self._path(name)) for name in ("samples.json", "samples.npz")):
            return False
        card = read_with_digest(self.storage, self._path("samples.json"), KeptCard)
        return card is not None and self.storage.size(self._path("samples.npz")) == card.bytes

    def set_aside_damaged(self) -> None:
        """Read the files once, and have them made anew where they are not what their card says."""
        card = read_with_digest(self.storage, self._path("samples.json"), KeptCard) if self.wanted else None
        for name, expected in (card.sha256 if card else {}).items():
            path = self._path(name)
            if not self.storage.exists(path) or digest_of(self.storage, path) != expected:
                set_aside(self.storage, self._path("samples.json"), f"{name} does not match it")
                return

    def has(self, first: int) -> bool:
        """Whether the chunk from this index on is there and whole, by itself or in the file."""
        return keep_intact(self.storage, self._part(first)) or self.complete

    def add(self, first: int, images: npt.NDArray[np.uint8]) -> None:
        """uint8 images [n, H, W] or [n, H, W, C] of samples first .. first + n; again is harmless."""
        if self.wanted:
            buffer = io.BytesIO()
            np.save(buffer, as_rgb(images), allow_pickle=False)
            self.storage.write_bytes(self._part(first), with_checksum(buffer.getvalue()))

    def finish(self, num_classes: int) -> None:
        """Put all chunks into one file with its manifest, then drop them."""
        if not self.complete:
            self._publish(num_classes)
        for name in self.storage.names(self._folder):
            self.storage.delete(f"{self._folder}/{name}")

    def _publish(self, num_classes: int) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            local = Path(scratch) / "samples.npz"
            write_npz(local, self.protocol, self._parts())
            self.storage.write_file(self._path("samples.npz"), local)
            size = local.stat().st_size
            with local.open("rb") as file:
                digests = {"samples.npz": hashlib.file_digest(file, "sha256").hexdigest()}
        rows = manifest(self.protocol, num_classes).encode()
        self.storage.write_bytes(self._path("samples.csv"), rows)
        digests["samples.csv"] = hashlib.sha256(rows).hexdigest()
        card = KeptCard(samples=self.protocol.samples, bytes=size, sha256=digests)
        write_with_digest(self.storage, self._path("samples.json"), card)

    def _path(self, name: str) -> str:
        return f"evaluations/{self.key}/{name}"

    @property
    def _folder(self) -> str:
        return self._path("images")

    def _part(self, first: int) -> str:
        return f"{self._folder}/{first:08d}{SUFFIX}"

    def _parts(self) -> Iterator[ImagePart]:
        names = [name for name in self.storage.names(self._folder) if name.endswith(SUFFIX)]
        for name in names:
            raw = io.BytesIO(verify_checksum(self.storage.read_bytes(f"{self._folder}/{name}")))
            yield ImagePart(int(name.removesuffix(SUFFIX)), np.load(raw, allow_pickle=False))
