"""Data sets in folders of shards: latents or pixels of any number of samples, streamed."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from grafting_core.backbones.autoencoder import pixels_of
from grafting_core.backbones.base import Backbone
from grafting_core.backbones.conditions import Conditions
from grafting_core.data.dataset_index import (
    CARD,
    INDEX,
    card_of_index,
    parsed_index,
    read_index,
    read_index_bytes,
    stored_card,
)
from grafting_core.data.datasets import FeatureStatistics
from grafting_core.data.fitting import check_fit
from grafting_core.data.image_sets import in_three_channels
from grafting_core.data.images import Images
from grafting_core.data.latents import LatentDataset
from grafting_core.data.npz import BadFile
from grafting_core.data.shards import Shards, check_shard, layout_of
from grafting_core.data.subsets import Indices, stratified
from grafting_core.specs.datasets import DatasetCard
from grafting_core.specs.encoding import DatasetIndex

MOST_IMAGES = 50_000
"""Images that samples are compared with at most; a data set of pixels may have any number."""
BY_FOLDER = {"name", "licence", "folder"}
"""Fields of a card that an index does not determine."""


def read_dataset(folder: Path) -> DatasetCard:
    """Verify every file of a folder against its index, and return its card.

    Name and licence come from `card.json`; without it the folder's name is used. Raises BadFile for a missing
    index, wrong digests, shapes or labels, and numbers that are not finite.
    """
    content = read_index_bytes(folder)
    index = parsed_index(folder, content)
    classes = len(index.classes)
    for shard in index.training + index.held_out:
        check_shard(folder, shard, layout_of(index), classes)
    for shard in index.reference + index.held_out_images:
        check_shard(folder, shard, layout_of(index, images=True), classes)
    named = stored_card(folder)
    name, licence = (named.name, named.licence) if named else (folder.resolve().name, None)
    card = card_of_index(index, content, name, licence)
    if named is not None and named.model_dump(exclude=BY_FOLDER) != card.model_dump(exclude=BY_FOLDER):
        raise BadFile(f"{folder / CARD} is not the card of {INDEX} beside it")
    return card.model_copy(update={"folder": str(folder)})


def load_latent_folder(card: DatasetCard) -> "LatentFolder":
    """Load the data set at `card.folder`; its shards are opened when they are needed.

    Raises BadFile if the folder is missing or contains another revision.
    """
    folder, index = read_index(card)
    return LatentFolder(card, folder, index)


@dataclass(frozen=True)
class LatentFolder:
    """A `Dataset`. Only labels and drawn samples are kept in memory."""

    card: DatasetCard
    folder: Path
    index: DatasetIndex

    @property
    def name(self) -> str:
        return self.card.name

    @property
    def digest(self) -> str:
        return self.card.digest

    @property
    def inverted(self) -> bool:
        return False

    @property
    def statistics(self) -> Mapping[str, FeatureStatistics]:
        return {}

    def latents(self, backbone: Backbone, count: int, seed: int = 0) -> LatentDataset:
        """Latents of `count` training samples in the proportions of the classes, drawn by seed.

        Raises ValueError for a backbone with another latent shape, autoencoder, scale or number of classes.
        """
        check_fit(self.card, backbone)
        chosen = stratified(self._labels_of(self._training), count, seed)
        return FolderLatents(self, self._training, chosen, self._labels_of(self._training), backbone)

    def held_out(self, backbone: Backbone) -> LatentDataset | None:
        check_fit(self.card, backbone)
        shards = self._held_out
        if not len(shards):
            return None
        every = np.arange(len(shards), dtype=np.int64)
        return FolderLatents(self, shards, every, self._labels_of(shards), backbone)

    def reference_images(self, name: str) -> tuple["FolderImages", Indices | None]:
        found = self._images(name, self._training if self._pixels else self._reference)
        assert found is not None  # an index has reference images or training pixels
        return found

    def held_out_reference(self, name: str) -> tuple["FolderImages", Indices | None] | None:
        return self._images(name, self._held_out if self._pixels else self._held_out_images)

    def _images(self, name: str, shards: Shards) -> tuple["FolderImages", Indices | None] | None:
        if not len(shards):
            return None
        labels = self._labels_of(shards)
        chosen = stratified(labels, MOST_IMAGES, seed=0)
        images = FolderImages(name, shards, chosen, self.card.image_size, self.card.channels)
        return images, labels[chosen] if self.card.classes else None

    @property
    def _pixels(self) -> bool:
        return self.index.values == "pixels"

    @cached_property
    def _training(self) -> Shards:
        return Shards(self.folder, self.index.training, layout_of(self.index))

    @cached_property
    def _held_out(self) -> Shards:
        return Shards(self.folder, self.index.held_out, layout_of(self.index))

    @cached_property
    def _reference(self) -> Shards:
        return Shards(self.folder, self.index.reference, layout_of(self.index, images=True))

    @cached_property
    def _held_out_images(self) -> Shards:
        return Shards(self.folder, self.index.held_out_images, layout_of(self.index, images=True))

    def _labels_of(self, shards: Shards) -> Indices:
        """Labels of all samples; zeros without classes."""
        return shards.all("labels") if self.card.classes else np.zeros(len(shards), np.int64)


@dataclass(frozen=True)
class FolderLatents:
    """A `LatentDataset` of selected samples of a folder."""

    dataset: LatentFolder
    shards: Shards
    chosen: Indices
    """Indices in the shards of samples 0 .. n."""
    labels: Indices
    """Labels of all samples of the shards."""
    backbone: Backbone

    @property
    def digest(self) -> str:
        return self.dataset.digest

    def __len__(self) -> int:
        return len(self.chosen)

    def draw(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        places, values = self.chosen[rows.numpy()], self.dataset.index.values
        if values == "pixels":
            return pixels_of(torch.from_numpy(self.shards.read("images", places)))
        if values == "samples":
            return torch.from_numpy(self.shards.read("latents", places))
        mean, std = (torch.from_numpy(self.shards.read(name, places)) for name in ("mean", "std"))
        return mean + std * torch.randn(mean.shape, generator=generator)

    def conditions(self, rows: Tensor) -> Conditions:
        labels = self.labels[self.chosen[rows.numpy()]]
        if not self.backbone.card.num_classes:
            labels = np.zeros_like(labels)
        return self.backbone.label_conditions(torch.from_numpy(labels))


class FolderImages:
    """Images of selected samples of a folder, as `IndexedImages`."""

    def __init__(
        self, name: str, shards: Shards, chosen: Indices, size: tuple[int, int], channels: int
    ) -> None:
        self.name, self.size, self.channels = name, size, channels
        self.count, self._shards, self._chosen = len(chosen), shards, chosen

    def batches(self, rows: int) -> Iterator[Images]:
        for start in range(0, self.count, rows):
            yield self.rows(np.arange(start, min(start + rows, self.count), dtype=np.int64))

    def rows(self, indices: Indices) -> Images:
        return in_three_channels(self._shards.read("images", self._chosen[indices]))

    @property
    def notes(self) -> tuple[str, ...]:
        return ()
