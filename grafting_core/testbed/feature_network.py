"""The feature network `fashion-cnn`, shipped with the package."""

import torch
from torch import Tensor

from grafting_core.evaluation.features.base import spatial_rows
from grafting_core.evaluation.features.pixels import luma
from grafting_core.specs.features import FeatureSource, feature_digest
from grafting_core.testbed.assets import load_classifier
from grafting_core.testbed.networks import FashionClassifier

SIDE = 28
SPATIAL_STAGE = 5
"""Number of stages before the last pooling, which give a map of 7 x 7."""


class FashionNetwork:
    """128 features, 7 x 7 x 7 spatial ones and 10 logits of 28 x 28 images; colours are reduced to luma."""

    name = "fashion-cnn"

    def __init__(self, classifier: FashionClassifier) -> None:
        self.classifier = classifier
        self.device = next(classifier.parameters()).device
        self.digest = str(feature_digest(self.name))

    def __call__(self, images_NHWC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features, spatial features and logits. Raises ValueError for images of another size."""
        if images_NHWC.shape[1:3] != (SIDE, SIDE):
            height, width = images_NHWC.shape[1:3]
            raise ValueError(f"fashion-cnn needs images of {SIDE} x {SIDE}, not {height} x {width}")
        pixels = luma(images_NHWC).float().div(127.5).sub(1).unsqueeze(1)
        maps = self.classifier.body[:SPATIAL_STAGE](pixels)
        pool = self.classifier.body[SPATIAL_STAGE:](maps).mean(dim=(2, 3))
        return pool, spatial_rows(maps), self.classifier.head(pool)


def load_fashion(source: FeatureSource | None, device: torch.device | str) -> FashionNetwork:
    """Load the network; its weights ship with the package, so `source` is not used."""
    return FashionNetwork(load_classifier().to(device))
