"""Data sets by name: latents for training, and images that samples are compared with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from grafting_core.backbones.base import Backbone
from grafting_core.data.image_sets import ArrayImages, IndexedImages
from grafting_core.data.latents import LatentDataset, Latents, encode_images
from grafting_core.specs.backbone import BackboneCard
from grafting_core.specs.datasets import DATASETS, DatasetEntry, DatasetRef


@dataclass(frozen=True)
class FeatureStatistics:
    """Statistics of the features of a data set: number, mean [D] and sum of squared deviations [D, D]."""

    count: int
    mean: npt.NDArray[np.float64]
    scatter: npt.NDArray[np.float64]


LabelledSet = tuple[IndexedImages, npt.NDArray[np.int64] | None]
"""Images and their labels, None if they have none."""


class Dataset(Protocol):
    """A loaded data set of the table."""

    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str:
        """SHA-256 of the data."""

    @property
    def inverted(self) -> bool:
        """Whether images are light on black and are displayed inverted, like ink on paper."""

    @property
    def statistics(self) -> Mapping[str, FeatureStatistics]:
        """Feature network -> statistics, if known for more images than are available here."""

    def latents(self, backbone: Backbone, count: int, seed: int = 0) -> LatentDataset:
        """Latents of `count` training samples, or of all if there are fewer; the seed selects which."""

    def held_out(self, backbone: Backbone) -> LatentDataset | None:
        """Latents of samples held out from training; None if there are none."""

    def reference_images(self, name: str) -> LabelledSet:
        """Images that samples are compared with, displayed under `name`, and their labels if known."""

    def held_out_reference(self, name: str) -> LabelledSet | None:
        """The same for images held out from training; None if there are none."""


@dataclass(frozen=True)
class LabelledImages:
    """uint8 images in memory, gray [N, H, W] or with channels [N, H, W, C], with labels [N]."""

    name: str
    digest: str
    images: Tensor
    labels: Tensor
    held_out_images: Tensor | None = None
    held_out_labels: Tensor | None = None
    inverted: bool = False
    statistics: Mapping[str, FeatureStatistics] = field(default_factory=dict)

    def latents(self, backbone: Backbone, count: int, seed: int = 0) -> LatentDataset:
        """Latents of `count` images, with classes as even as possible: the first ones, or those of a seed."""
        chosen = some_of_each_class(self.labels, count, seed)
        return encode_images(backbone, self.images[chosen], self.labels[chosen], self.digest)

    def held_out(self, backbone: Backbone) -> LatentDataset | None:
        images, labels = self.held_out_images, self.held_out_labels
        if images is None or labels is None or not len(labels):
            return None
        chosen = first_of_each_class(labels, len(labels))
        return encode_images(backbone, images[chosen], labels[chosen], self.digest)

    def reference_images(self, name: str) -> LabelledSet:
        return ArrayImages(name, self.images.numpy()), self.labels.numpy()

    def held_out_reference(self, name: str) -> LabelledSet | None:
        images, labels = self.held_out_images, self.held_out_labels
        if images is None or labels is None or not len(labels):
            return None
        return ArrayImages(name, images.numpy()), labels.numpy()


def first_of_each_class(labels: Tensor, count: int) -> Tensor:
    """Indices of `count` samples with classes as even as possible, in ascending order."""
    ranks = torch.zeros_like(labels)
    for label in labels.unique():
        members = (labels == label).nonzero().squeeze(1)
        ranks[members] = torch.arange(len(members))
    return torch.argsort(ranks, stable=True)[:count].sort().values


def some_of_each_class(labels: Tensor, count: int, seed: int) -> Tensor:
    """As `first_of_each_class`, after the samples were shuffled by the seed; 0 leaves their order."""
    if seed == 0:
        return first_of_each_class(labels, count)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return order[first_of_each_class(labels[order], count)].sort().values


def load_dataset(name: str) -> Dataset:
    """Load a data set and cache it. Raises ValueError for a name that is not in the table."""
    return _loaded(DATASETS.find(name))


@lru_cache(maxsize=2)
def _loaded(entry: DatasetEntry) -> Dataset:
    dataset: Dataset = entry.loader() if entry.card is None else entry.loader(entry.card)
    return dataset


def dataset_of(card: BackboneCard, named: DatasetRef | None = None) -> Dataset:
    """The named data set, by default the backbone's.

    Raises ValueError if the card names none, or if the data set here is another revision than the named one.
    """
    if named is None and card.dataset is None:
        raise ValueError(f"backbone {card.name!r} has no data set for training and comparison")
    dataset = load_dataset(named.name if named else str(card.dataset))
    if named is not None and dataset.digest != named.digest:
        raise ValueError(
            f"data set {named.name!r} has the digest {dataset.digest[:12]} here, not {named.digest[:12]}"
        )
    return dataset


def encode_latents(
    backbone: Backbone, images: int, dataset: DatasetRef | None = None, seed: int = 0
) -> Latents:
    """Latents of `images` training samples of a data set, by default the backbone's, selected by the seed."""
    found = dataset_of(backbone.card, dataset)
    # Data sets of other packages may have been written before there was a seed.
    return Latents.of(backbone, found.latents(backbone, images, *([seed] if seed else [])))


def encode_held_out(backbone: Backbone, dataset: DatasetRef | None = None) -> Latents:
    """Latents of all samples held out from training. Raises ValueError if there are none."""
    found = dataset_of(backbone.card, dataset)
    held_out = found.held_out(backbone)
    if held_out is None:
        raise ValueError(f"data set {found.name!r} has no samples held out from training")
    return Latents.of(backbone, held_out)
