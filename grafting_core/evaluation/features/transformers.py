"""`dinov2` and `clip` by transformers, from a local folder; only safetensors, no remote code."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection, Dinov2Model

from grafting_core.data.images import Images
from grafting_core.specs.features import FeatureSource

SPATIAL_CHANNELS = 7
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class FolderNetwork:
    """Network on whole images, resized bicubically with antialiasing to its square input."""

    def __init__(self, name: str, model: nn.Module, folder: Path, source: FeatureSource) -> None:
        self.name, self.digest, self.model = name, source.sha256, model
        self.device = next(model.parameters()).device
        config: Any = model.config
        self.side, self.patch_size = int(config.image_size), int(config.patch_size)
        self.mean, self.std = _normalisation(folder)
        if name == "dinov2":
            # Its position embedding is interpolated; 224 is the size used in the literature.
            self.side = min(self.side, 224 // self.patch_size * self.patch_size)

    def _pixels(self, images_NHWC: Tensor) -> Tensor:
        resized = np.stack([_resized(image, self.side) for image in images_NHWC.cpu().numpy()])
        pixels = torch.from_numpy(resized).to(self.device).permute(0, 3, 1, 2).float().div(255)
        mean, std = (torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return (pixels - mean) / std


class Dinov2Network(FolderNetwork):
    """DINOv2: the normalised class token; spatial features are the first 7 channels of the patch tokens."""

    def __call__(self, images_NHWC: Tensor) -> tuple[Tensor, Tensor, None]:
        tokens = self.model(pixel_values=self._pixels(images_NHWC)).last_hidden_state
        return tokens[:, 0], tokens[:, 1:, :SPATIAL_CHANNELS].flatten(1), None


class ClipNetwork(FolderNetwork):
    """CLIP: the projected image embedding."""

    def __call__(self, images_NHWC: Tensor) -> tuple[Tensor, None, None]:
        return self.model(pixel_values=self._pixels(images_NHWC)).image_embeds, None, None


def _resized(image: Images, side: int) -> Images:
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))


def _normalisation(folder: Path) -> tuple[Sequence[float], Sequence[float]]:
    file = folder / "preprocessor_config.json"
    config = json.loads(file.read_text()) if file.exists() else {}
    return config.get("image_mean", IMAGENET_MEAN), config.get("image_std", IMAGENET_STD)


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
