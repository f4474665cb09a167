"""Samples that an experiment asked to keep: images by chunk while they are made, one file in the end.

evaluations/<key>/images/<first index>.npy   until the file is there
evaluations/<key>/samples.npz, samples.csv   images and who is who
evaluations/<key>/samples.json               written last: vouches for them
"""

import io
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from grafting_core.sample_files import ImagePart, as_rgb, manifest, write_npz
from grafting_core.spec.base import Frozen
from grafting_core.spec.plans import EvaluationProtocol
from grafting_core.storage import Storage


class KeptCard(Frozen):
    """What a whole file looks like."""

    samples: int
    bytes: int


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
        card = self.storage.read_model(self._path("samples.json"), KeptCard)
        return self.storage.size(self._path("samples.npz")) == card.bytes

    def has(self, first: int) -> bool:
        """Whether the chunk from this index on is there, by itself or in the file."""
        return self.storage.exists(self._part(first)) or self.complete

    def add(self, first: int, images: npt.NDArray[np.uint8]) -> None:
        """uint8 images [n, H, W] or [n, C, H, W] of samples first .. first + n; again is harmless."""
        if self.wanted:
            buffer = io.BytesIO()
            np.save(buffer, as_rgb(images), allow_pickle=False)
            self.storage.write_bytes(self._part(first), buffer.getvalue())

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
            card = KeptCard(samples=self.protocol.samples, bytes=local.stat().st_size)
        rows = manifest(self.protocol, num_classes)
        self.storage.write_bytes(self._path("samples.csv"), rows.encode())
        self.storage.write_model(self._path("samples.json"), card)

    def _path(self, name: str) -> str:
        return f"evaluations/{self.key}/{name}"

    @property
    def _folder(self) -> str:
        return self._path("images")

    def _part(self, first: int) -> str:
        return f"{self._folder}/{first:08d}.npy"

    def _parts(self) -> Iterator[ImagePart]:
        for name in self.storage.names(self._folder):
            raw = io.BytesIO(self.storage.read_bytes(f"{self._folder}/{name}"))
            yield ImagePart(int(name.removesuffix(".npy")), np.load(raw, allow_pickle=False))
