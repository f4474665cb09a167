"""Encode images into a data set's folder: shard by shard, resumable, by one worker or several.

The folder has `encoding.json`, which identifies the work, and a receipt for every finished shard.
`index.json` is written last, and a folder without it is no data set. Equal images and settings give equal
files, for any number of workers and interruptions.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from grafting_core.backbones.autoencoder import pixels_of
from grafting_core.data.cropping import centre_square, luma
from grafting_core.data.dataset_index import CARD, INDEX, card_of_index
from grafting_core.data.encoders import Encoder, load_encoder
from grafting_core.data.image_files import upright_rgb
from grafting_core.data.images import Images
from grafting_core.data.latent_folder import read_dataset
from grafting_core.data.latents import generator_for
from grafting_core.data.npz import BadFile
from grafting_core.data.opening import ALL_FILES, Access
from grafting_core.data.progress import Progress, Stop, StopRequested, never_stop, no_progress
from grafting_core.data.shard_writer import ShardWriter
from grafting_core.data.shards import write_whole
from grafting_core.data.sources.base import ImageSource
from grafting_core.data.sources.table import open_source
from grafting_core.data.subsets import Indices, stratified
from grafting_core.specs.base import Frozen
from grafting_core.specs.canonical import digest
from grafting_core.specs.datasets import DatasetCard
from grafting_core.specs.encoding import DatasetIndex, EncodeSettings, ShardFile

RECORD, RECEIPT = "encoding.json", ".receipt.json"
FORMAT = 1
"""Incremented when the same images give other bytes."""
Part = Literal["training", "held_out"]
PARTS: tuple[Part, ...] = ("training", "held_out")
ENLARGED = "were smaller and enlarged"
MAX_SHARDS = 100_000
FILE_BYTES = 512
"""Bytes of a shard in addition to its tensors: its header, and its entry in the index."""


class Receipt(Frozen):
    """Files of a finished chunk, and how its images were converted."""

    samples: ShardFile
    images: ShardFile | None = None
    notes: dict[str, int] = {}


@dataclass(frozen=True)
class Chunk:
    """Samples of one shard: their indices in the source, and which of them keep their images."""

    part: Part
    number: int
    rows: Indices
    kept: npt.NDArray[np.bool_]

    @property
    def name(self) -> str:
        return f"{self.part}-{self.number:05d}"


def encode_folder(
    source: Path,
    target: Path,
    settings: EncodeSettings,
    autoencoder: Path | Encoder | None,
    progress: Progress = no_progress,
    stop: Stop = never_stop,
    access: Access = ALL_FILES,
    max_bytes: int | None = None,
) -> DatasetCard:
    """Encode all images of `source`, or the rest of an interrupted encoding. None keeps the pixels.

    Only files that `access` admits are read. Raises BadFile for images that cannot be read and for a source
    that changes meanwhile, ValueError if `target` contains something else or if the shards would have more
    than `max_bytes`, StopRequested once all finished shards are saved.
    """
    encoding = Encoding.begin(source, target, settings, autoencoder, access, max_bytes)
    encoding.run(progress, stop)
    return encoding.finish()


@dataclass(frozen=True)
class Encoding:
    """Work on one target folder. Several workers each call `run` with their rank, then one calls `finish`."""

    source: ImageSource
    target: Path
    settings: EncodeSettings
    encoder: Encoder | None
    fingerprint: str

    @classmethod
    def begin(
        cls,
        source: Path,
        target: Path,
        settings: EncodeSettings,
        autoencoder: Path | Encoder | None,
        access: Access = ALL_FILES,
        max_bytes: int | None = None,
    ) -> "Encoding":
        """List the source and claim the target. Raises ValueError if it contains other work or needs more
        than `max_bytes`.
        """
        encoder = load_encoder(autoencoder) if isinstance(autoencoder, Path) else autoencoder
        images = open_source(source, settings, access)
        encoding = cls(images, target, settings, encoder, images.fingerprint())
        encoding._check_size(max_bytes)
        encoding._claim()
        return encoding

    def _check_size(self, max_bytes: int | None) -> None:
        """Raise ValueError for too many shards, or more bytes than allowed, which follow from the shapes."""
        if len(self.source.names) > MAX_SHARDS * self.settings.shard_rows:
            raise ValueError(
                f"{len(self.source.names):,} images in shards of {self.settings.shard_rows} are more than "
                f"{MAX_SHARDS:,} shards; set a larger shard_rows"
            )
        if max_bytes is None:
            return
        needed = sum(self._bytes_of(chunk) for chunk in self.chunks)
        if needed > max_bytes:
            raise ValueError(
                f"the data set of {len(self.source.names):,} images would have {needed:,} bytes; "
                f"at most {max_bytes:,} are allowed"
            )

    def _bytes_of(self, chunk: Chunk) -> int:
        """Bytes of a chunk's files."""
        settings, label = self.settings, 8 if self.source.classes else 0
        pixels, kept = settings.image_size**2 * settings.channels, int(chunk.kept.sum())
        if self.encoder is None:
            return FILE_BYTES + len(chunk.rows) * (pixels + label)
        values = 4 * prod(self._shape) * (2 if settings.values == "moments" else 1)
        images = FILE_BYTES + kept * (pixels + label) if kept else 0
        return FILE_BYTES + len(chunk.rows) * (values + label) + images

    def _claim(self) -> None:
        self.target.mkdir(parents=True, exist_ok=True)
        record, file = self._record(), self.target / RECORD
        if file.exists():
            if json.loads(file.read_text()) != record:
                raise ValueError(
                    f"{self.target} contains an encoding of other images, settings or autoencoder; "
                    "remove it, or name another folder"
                )
        elif any(not entry.name.startswith(".") for entry in self.target.iterdir()):
            raise ValueError(f"{self.target} contains other files; name an empty folder")
        else:
            write_whole(file, json.dumps(record, indent=1, sort_keys=True).encode())

    def _record(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "settings": json.loads(self.settings.model_dump_json()),
            "autoencoder": self.encoder.digest if self.encoder else None,
            "images": len(self.source.names),
            "source": digest([self.fingerprint, *self.source.labels]),
        }

    @cached_property
    def chunks(self) -> list[Chunk]:
        """All chunks in order, the same for every worker."""
        found = list[Chunk]()
        for part in PARTS:
            rows = self._rows[part]
            labels = self._labels[rows]
            kept = np.zeros(len(rows), bool)
            if self.encoder is not None:
                kept[stratified(labels, self.settings.reference, self.settings.seed)] = True
            size = self.settings.shard_rows
            for number, first in enumerate(range(0, len(rows), size)):
                span = slice(first, first + size)
                found.append(Chunk(part, number, rows[span], kept[span]))
        return found

    @cached_property
    def _labels(self) -> Indices:
        labels = self.source.labels or [0] * len(self.source.names)
        return np.array(labels, np.int64)

    @cached_property
    def _rows(self) -> dict[Part, Indices]:
        """Indices in the source of the samples of each part."""
        held_out = stratified(self._labels, self.settings.held_out, self.settings.seed)
        training = np.setdiff1d(np.arange(len(self._labels)), held_out)
        if not len(training):
            raise ValueError(f"held_out {self.settings.held_out} leaves no image of {len(held_out)} to train")
        return {"training": training, "held_out": held_out}

    def run(
        self, progress: Progress = no_progress, stop: Stop = never_stop, rank: int = 0, world: int = 1
    ) -> None:
        """Encode every `world`-th chunk from `rank` on, except finished ones."""
        mine = [] if self._is_finished else self.chunks[rank::world]
        total, done = sum(len(chunk.rows) for chunk in mine), 0
        for chunk in mine:
            progress(done, total, "images")
            if stop():
                raise StopRequested
            if not self._is_done(chunk):
                self._encode(chunk, stop)
            done += len(chunk.rows)
        progress(done, total, "images")

    @property
    def _is_finished(self) -> bool:
        return (self.target / INDEX).is_file()

    def _is_done(self, chunk: Chunk) -> bool:
        receipt = self._receipt(chunk)
        files = [] if receipt is None else [receipt.samples, *([receipt.images] if receipt.images else [])]
        return bool(files) and all((self.target / shard.file).is_file() for shard in files)

    def _receipt(self, chunk: Chunk) -> Receipt | None:
        file = self._receipt_file(chunk)
        return Receipt.model_validate_json(file.read_text()) if file.is_file() else None

    def _receipt_file(self, chunk: Chunk) -> Path:
        return self.target / f"{chunk.name}{RECEIPT}"

    def _encode(self, chunk: Chunk, stop: Stop) -> None:
        notes, kept = Counter[str](), int(chunk.kept.sum())
        samples = ShardWriter(self.target, f"{chunk.name}.safetensors", len(chunk.rows))
        images = ShardWriter(self.target, f"{chunk.name}-images.safetensors", kept) if kept else None
        try:
            for first in range(0, len(chunk.rows), self.settings.batch_size):
                if stop():
                    raise StopRequested
                span = slice(first, first + self.settings.batch_size)
                self._append(chunk, span, notes, samples, images)
            receipt = Receipt(
                samples=samples.finish(),
                images=images.finish() if images else None,
                notes=dict(sorted(notes.items())),
            )
        finally:
            for writer in filter(None, (samples, images)):
                writer.discard()
        write_whole(self._receipt_file(chunk), receipt.model_dump_json().encode())

    def _append(
        self, chunk: Chunk, span: slice, notes: Counter[str], samples: ShardWriter, images: ShardWriter | None
    ) -> None:
        """Encode the images of one batch and write them."""
        rows, kept = chunk.rows[span], chunk.kept[span]
        batch = np.stack([self._image(int(index), chunk.part, notes) for index in rows])
        values = {"images": batch} if self.encoder is None else self._latents(batch, rows)
        samples.append(self._with_labels(values, rows))
        if images is not None and kept.any():
            images.append(self._with_labels({"images": batch[kept]}, rows[kept]))

    def _with_labels(
        self, tensors: dict[str, npt.NDArray[Any]], rows: Indices
    ) -> dict[str, npt.NDArray[Any]]:
        return {**tensors, "labels": self._labels[rows]} if self.source.classes else tensors

    def _image(self, index: int, part: Part, notes: Counter[str]) -> Images:
        """Cropped and resized image [side, side, C]."""
        settings = self.settings
        with self.source.open(index) as picture:
            pixels, changes = upright_rgb(picture)
        notes.update([*changes, *([ENLARGED] if min(pixels.shape[:2]) < settings.image_size else [])])
        square = centre_square(pixels, settings.image_size)
        if settings.flip and part == "training" and _mirrored(settings.seed, index):
            square = square[:, ::-1]
        return luma(np.ascontiguousarray(square)) if settings.channels == 1 else square

    @torch.no_grad()
    def _latents(self, images: Images, rows: Indices) -> dict[str, npt.NDArray[Any]]:
        assert self.encoder is not None
        pixels = pixels_of(torch.from_numpy(np.ascontiguousarray(images))).to(self.encoder.device)
        mean, std = (part.float().cpu() for part in self.encoder.autoencoder.encode(pixels))
        for part in (mean, std):
            finite = torch.isfinite(part).flatten(1).all(dim=1)
            if not finite.all():
                name = self.source.names[int(rows[int((~finite).nonzero()[0])])]
                raise ValueError(f"the autoencoder's latents of {name} are not finite numbers")
        if self.settings.values == "moments":
            return {"mean": mean.numpy(), "std": std.numpy()}
        noise = [_posterior_noise(self.settings.seed, int(row), mean.shape[1:]) for row in rows]
        return {"latents": (mean + std * torch.stack(noise)).numpy()}

    def finish(self) -> DatasetCard:
        """Write the index once all chunks are finished, and verify the whole folder.

        Raises BadFile if the source has changed since the beginning, as its images may be of several states.
        """
        if self._is_finished:
            return read_dataset(self.target)
        receipts = list(self._receipts())
        if self.source.fingerprint() != self.fingerprint:
            raise BadFile("the images changed while they were read; begin anew in an empty folder")
        index = self._index(receipts)
        content = index.model_dump_json(indent=1).encode()
        card = card_of_index(index, content, self.settings.name, self.settings.licence)
        write_whole(self.target / CARD, card.model_dump_json(indent=1, exclude={"folder"}).encode())
        write_whole(self.target / INDEX, content)
        for chunk in self.chunks:
            self._receipt_file(chunk).unlink(missing_ok=True)
        return read_dataset(self.target)

    def _receipts(self) -> Iterator[tuple[Chunk, Receipt]]:
        for chunk in self.chunks:
            receipt = self._receipt(chunk)
            if receipt is None:
                raise ValueError(f"{self.target}: {chunk.name} is not encoded yet")
            yield chunk, receipt

    def _index(self, receipts: list[tuple[Chunk, Receipt]]) -> DatasetIndex:
        settings, encoder = self.settings, self.encoder
        size = (settings.image_size, settings.image_size)
        samples = {part: tuple(r.samples for chunk, r in receipts if chunk.part == part) for part in PARTS}
        images = {
            part: tuple(r.images for chunk, r in receipts if chunk.part == part and r.images)
            for part in PARTS
        }
        notes = Counter[str]()
        for _, receipt in receipts:
            notes.update(receipt.notes)
        return DatasetIndex(
            values=settings.values if encoder else "pixels",
            shape=self._shape,
            image_size=size,
            channels=settings.channels,
            conditions="labels" if self.source.classes else "none",
            classes=self.source.classes,
            autoencoder=encoder.digest if encoder else None,
            scale=encoder.scale if encoder else 1.0,
            shift=encoder.shift if encoder else 0.0,
            training=samples["training"],
            held_out=samples["held_out"],
            reference=images["training"],
            held_out_images=images["held_out"],
            notes=dict(sorted(notes.items())),
        )

    @cached_property
    def _shape(self) -> tuple[int, int, int]:
        """Shape of one latent, or of one image with its channels first."""
        settings = self.settings
        image = np.zeros((1, settings.image_size, settings.image_size, settings.channels), np.uint8)
        if self.encoder is None:
            return settings.channels, settings.image_size, settings.image_size
        mean = next(iter(self._latents(image, np.zeros(1, np.int64)).values()))
        return int(mean.shape[1]), int(mean.shape[2]), int(mean.shape[3])


def _mirrored(seed: int, index: int) -> bool:
    return bool(torch.rand((), generator=generator_for("encode/flip", seed, index)) < 0.5)


def _posterior_noise(seed: int, index: int, shape: torch.Size) -> torch.Tensor:
    return torch.randn(shape, generator=generator_for("encode/posterior", seed, index))
