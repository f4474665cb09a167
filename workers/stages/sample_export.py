"""Export of samples: images by chunk while sampling, one file at the end.

evaluations/<key>/images/<first index>.image one chunk, with checksum; deleted once the file is complete
evaluations/<key>/samples.npz, samples.csv   images, and seed and label of each
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


class ExportCard(Frozen):
    """Card of the complete file."""

    samples: int
    bytes: int
    sha256: dict[str, str] = {}
    """File name -> digest; empty in cards of older versions."""


@dataclass(frozen=True)
class SampleExport:
    """Exported images of one evaluation in storage; does nothing where the experiment does not export."""

    storage: Storage
    key: str
    protocol: EvaluationProtocol
    enabled: bool

    @property
    def artifacts(self) -> dict[str, str]:
        """File name -> path, for the stage's report."""
        names = ("samples.npz", "samples.csv") if self.enabled else ()
        return {name: self._path(name) for name in names}

    @property
    def complete(self) -> bool:
        """Whether the file is published with the size on its card, or nothing is exported."""
        if not self.enabled:
            return True
        if not all(self.storage.exists(self._path(name)) for name in ("samples.json", "samples.npz")):
            return False
        card = read_with_digest(self.storage, self._path("samples.json"), ExportCard)
        return card is not None and self.storage.size(self._path("samples.npz")) == card.bytes

    def set_aside_damaged(self) -> None:
        """Set the card aside if the files' digests differ from it, so that they are made again."""
        card = (
            read_with_digest(self.storage, self._path("samples.json"), ExportCard) if self.enabled else None
        )
        for name, expected in (card.sha256 if card else {}).items():
            path = self._path(name)
            if not self.storage.exists(path) or digest_of(self.storage, path) != expected:
                set_aside(self.storage, self._path("samples.json"), f"{name} does not match it")
                return

    def has(self, first: int) -> bool:
        """Whether the chunk that starts at this index is intact, by itself or in the complete file."""
        return keep_intact(self.storage, self._part(first)) or self.complete

    def add(self, first: int, images: npt.NDArray[np.uint8]) -> None:
        """uint8 images [n, H, W] or [n, H, W, C] of samples first .. first + n; writing twice is harmless."""
        if self.enabled:
            buffer = io.BytesIO()
            np.save(buffer, as_rgb(images), allow_pickle=False)
            self.storage.write_bytes(self._part(first), with_checksum(buffer.getvalue()))

    def finish(self, num_classes: int) -> None:
        """Put all chunks into one file with its manifest, then delete them."""
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
        card = ExportCard(samples=self.protocol.samples, bytes=size, sha256=digests)
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
