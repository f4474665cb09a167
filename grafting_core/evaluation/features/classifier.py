"""A small residual classifier as a feature network, trained by `graft features train`."""

import json
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import relu

from grafting_core.evaluation.features.base import spatial_rows
from grafting_core.evaluation.features.pixels import luma, resized
from grafting_core.specs.base import Frozen
from grafting_core.specs.datasets import DatasetRef
from grafting_core.specs.features import FeatureSource

KIND: Literal["graftlab-classifier"] = "graftlab-classifier"
WEIGHTS, CONFIG = "model.safetensors", "config.json"
WIDTH, DIMS = 32, 128
LARGE = 48
"""For images of at least this side the first convolution has stride 2."""
SMALLEST_MAP = 8
"""Stages halve the maps until their side is at most this."""


class ClassifierConfig(Frozen):
    """`config.json`: architecture and classes of the weights."""

    kind: Literal["graftlab-classifier"] = KIND
    image_size: tuple[Annotated[int, Field(ge=4, le=4096)], Annotated[int, Field(ge=4, le=4096)]]
    channels: Literal[1, 3]
    classes: tuple[str, ...]
    dataset: DatasetRef

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage. All but the first halve the maps; the last gives the features."""
        side = max(self.image_size)
        size, stages = (side + 1) // 2 if side >= LARGE else side, 1
        while size > SMALLEST_MAP:
            size, stages = (size + 1) // 2, stages + 1
        return (*(min(WIDTH * 2**stage, DIMS) for stage in range(stages - 1)), DIMS)


class Residual(nn.Module):
    """Two 3 x 3 convolutions and a shortcut, which is a projection if size or channels change."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        same = inputs == outputs and stride == 1
        self.shortcut: nn.Module = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, maps: Tensor) -> Tensor:
        inner = self.norm2(self.conv2(relu(self.norm1(self.conv1(maps)))))
        return relu(inner + self.shortcut(maps))


class ImageClassifier(nn.Module):
    """Pixels [B, C, H, W] in [-1, 1] to logits [B, K]; `DIMS` features are the mean of the last maps."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        first = config.widths[0]
        stride = 2 if max(config.image_size) >= LARGE else 1
        self.stem = nn.Conv2d(config.channels, first, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(first)
        inputs = (first, *config.widths[:-1])
        self.stages = nn.Sequential(
            *(
                Residual(i, o, 1 if stage == 0 else 2)
                for stage, (i, o) in enumerate(zip(inputs, config.widths, strict=True))
            )
        )
        self.head = nn.Linear(DIMS, len(config.classes))

    def maps(self, pixels_BCHW: Tensor) -> Tensor:
        """Last maps [B, DIMS, h, w]."""
        found: Tensor = self.stages(relu(self.norm(self.stem(pixels_BCHW))))
        return found

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        logits: Tensor = self.head(self.maps(pixels_BCHW).mean(dim=(2, 3)))
        return logits


def pixels_for(config: ClassifierConfig, images_NHWC: Tensor) -> Tensor:
    """Convert uint8 images of any size with three channels to the classifier's input, on the CPU."""
    fitting = resized(images_NHWC, config.image_size)
    planes = luma(fitting).unsqueeze(1) if config.channels == 1 else fitting.permute(0, 3, 1, 2)
    return planes.float().div(127.5).sub(1).contiguous()


class ClassifierNetwork:
    """Mean features, spatial features of the last maps, and logits in the order of the data set's labels."""

    def __init__(self, name: str, classifier: ImageClassifier, config: ClassifierConfig, digest: str) -> None:
        self.name, self.digest, self.classifier, self.config = name, digest, classifier, config
        self.device = next(classifier.parameters()).device

    def __call__(self, images_NHWC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        maps = self.classifier.maps(pixels_for(self.config, images_NHWC).to(self.device))
        pool = maps.mean(dim=(2, 3))
        return pool, spatial_rows(maps), self.classifier.head(pool)


def read_config(folder: Path) -> ClassifierConfig:
    """Read `config.json`. Raises ValueError if the folder contains no such classifier."""
    try:
        return ClassifierConfig.model_validate_json((folder / CONFIG).read_bytes())
    except (OSError, ValidationError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder} contains no classifier of a data set: {str(error)[:300]}") from error


def load_classifier(source: FeatureSource, device: torch.device | str) -> ClassifierNetwork:
    """Load a classifier whose digest was checked. Raises ValueError if the folder contains something else."""
    folder = Path(source.path)
    config = read_config(folder)
    classifier = ImageClassifier(config)
    try:
        classifier.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{folder / WEIGHTS} is not of its {CONFIG}: {str(error)[:300]}") from error
    if not all(torch.isfinite(tensor).all() for tensor in classifier.state_dict().values()):
        raise ValueError(f"{folder / WEIGHTS} has numbers that are not finite")
    frozen = classifier.to(device).eval().requires_grad_(False)
    return ClassifierNetwork(folder.resolve().name, frozen, config, source.sha256)
