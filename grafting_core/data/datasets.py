"""Data sets by name: latents to train on, images to compare samples with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from grafting_core.backbones.base import Backbone
from grafting_core.data.image_sets import ArrayImages, ImageSet
from grafting_core.data.latents import LatentDataset, Latents, encode_images
from grafting_core.specs.backbone import BackboneCard
from grafting_core.specs.datasets import DATASETS


@dataclass(frozen=True)
class FeatureStatistics:
    """Of the features of a whole data set: their number, mean [D] and sum of squared deviations [D, D]."""

    count: int
    mean: npt.NDArray[np.float64]
    scatter: npt.NDArray[np.float64]


class Dataset(Protocol):
    """A row of the table of data sets, loaded."""

    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str:
        """SHA-256 of the data."""

    @property
    def inverted(self) -> bool:
        """Whether images are light on black and are shown inverted, as ink on paper."""

    @property
    def statistics(self) -> Mapping[str, FeatureStatistics]:
        """By feature network, where they are known of more images than are at hand."""

    def latents(self, backbone: Backbone, count: int) -> LatentDataset:
        """Latents of `count` samples to train on, or of all where there are fewer."""

    def held_out(self, backbone: Backbone) -> LatentDataset | None:
        """Latents of samples that no training has seen; None where there are none."""

    def reference_images(self, name: str) -> tuple[ImageSet, npt.NDArray[np.int64] | None]:
        """Images that samples are compared with, shown under `name`, and their labels where known."""


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

    def latents(self, backbone: Backbone, count: int) -> LatentDataset:
        """Classes are as even among them as they come."""
        chosen = first_of_each_class(self.labels, count)
        return encode_images(backbone, self.images[chosen], self.labels[chosen], self.digest)

    def held_out(self, backbone: Backbone) -> LatentDataset | None:
        images, labels = self.held_out_images, self.held_out_labels
        if images is None or labels is None or not len(labels):
            return None
        chosen = first_of_each_class(labels, len(labels))
        return encode_images(backbone, images[chosen], labels[chosen], self.digest)

    def reference_images(self, name: str) -> tuple[ImageSet, npt.NDArray[np.int64] | None]:
        return ArrayImages(name, self.images.numpy()), self.labels.numpy()


def first_of_each_class(labels: Tensor, count: int) -> Tensor:
    """Indices of `count` samples with classes as even as they come, in ascending order."""
    ranks = torch.zeros_like(labels)
    for label in labels.unique():
        members = (labels == label).nonzero().squeeze(1)
        ranks[members] = torch.arange(len(members))
    return torch.argsort(ranks, stable=True)[:count].sort().values


@lru_cache(maxsize=2)
def load_dataset(name: str) -> Dataset:
    """Kept in memory. Raises ValueError for a name that is not in the table."""
    dataset: Dataset = DATASETS.find(name).loader()
    return dataset


def dataset_of(card: BackboneCard) -> Dataset:
    """What the backbone is trained on and compared with. Raises ValueError where its card names nothing."""
    if card.dataset is None:
        raise ValueError(f"backbone {card.name!r} names no data set to train on and to compare with")
    return load_dataset(card.dataset)


def encode_latents(backbone: Backbone, images: int) -> Latents:
    """Latents of `images` samples of the backbone's data set."""
    return Latents.of(backbone, dataset_of(backbone.card).latents(backbone, images))


def encode_held_out(backbone: Backbone) -> Latents:
    """The same of all samples that no training has seen. Raises ValueError where there are none."""
    held_out = dataset_of(backbone.card).held_out(backbone)
    if held_out is None:
        raise ValueError(f"backbone {backbone.card.name!r} has no images that are held out from training")
    return Latents.of(backbone, held_out)
