"""`dinov2` and `clip` by transformers, from a local folder; only safetensors, no remote code."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection, Dinov2Model

from grafting_core.evaluation.features.pixels import normalisation_of, normalised, resized
from grafting_core.specs.features import FeatureSource

SPATIAL_CHANNELS = 7


class FolderNetwork:
    """Network on whole images, resized bicubically with antialiasing to its square input."""

    def __init__(self, name: str, model: nn.Module, folder: Path, source: FeatureSource) -> None:
        self.name, self.digest, self.model = name, source.sha256, model
        self.device = next(model.parameters()).device
        config: Any = model.config
        self.side, self.patch_size = int(config.image_size), int(config.patch_size)
        self.mean, self.std = normalisation_of(folder)
        if name == "dinov2":
            # Its position embedding is interpolated; 224 is the size used in the literature.
            self.side = min(self.side, 224 // self.patch_size * self.patch_size)

    def _pixels(self, images_NHWC: Tensor) -> Tensor:
        fitting = resized(images_NHWC, (self.side, self.side)).to(self.device)
        return normalised(fitting, self.mean, self.std)


class Dinov2Network(FolderNetwork):
    """DINOv2: the normalised class token; spatial features are the first 7 channels of the patch tokens."""

    def __call__(self, images_NHWC: Tensor) -> tuple[Tensor, Tensor, None]:
        tokens = self.model(pixel_values=self._pixels(images_NHWC)).last_hidden_state
        return tokens[:, 0], tokens[:, 1:, :SPATIAL_CHANNELS].flatten(1), None


class ClipNetwork(FolderNetwork):
    """CLIP: the projected image embedding."""

    def __call__(self, images_NHWC: Tensor) -> tuple[Tensor, None, None]:
        return self.model(pixel_values=self._pixels(images_NHWC)).image_embeds, None, None


def _model(cls: Any, source: FeatureSource, device: torch.device | str) -> nn.Module:
    try:
        model = cls.from_pretrained(source.path, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{source.path} holds no {cls.__name__}: {str(error)[:300]}") from error
    loaded: nn.Module = model.to(device).eval().requires_grad_(False)
    return loaded


def load_dinov2(source: FeatureSource, device: torch.device | str) -> Dinov2Network:
    """Load DINOv2. Raises ValueError if the folder is another model."""
    return Dinov2Network("dinov2", _model(Dinov2Model, source, device), Path(source.path), source)


def load_clip(source: FeatureSource, device: torch.device | str) -> ClipNetwork:
    """Load CLIP. Raises ValueError if the folder is another model."""
    model = _model(CLIPVisionModelWithProjection, source, device)
    return ClipNetwork("clip", model, Path(source.path), source)
