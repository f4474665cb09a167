"""Preprocessing of uint8 images [N, H, W, 3] for feature networks."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from grafting_core.backbones.dit_config import read_json

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def luma(images_NHWC: Tensor) -> Tensor:
    """uint8 [N, H, W] by ITU-R 601 in integer arithmetic, so that gray values do not change."""
    weights = torch.tensor([299, 587, 114], dtype=torch.int32, device=images_NHWC.device)
    return (images_NHWC.int() * weights).sum(dim=3).add(500).div(1000, rounding_mode="floor").to(torch.uint8)


def resized(images_NHWC: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize uint8 images to a height and width, on the CPU: Pillow's bicubic filter with antialiasing."""
    if images_NHWC.shape[1:3] == size:
        return images_NHWC.cpu()
    height, width = size
    parts = [
        np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
        for image in images_NHWC.cpu().numpy()
    ]
    return torch.from_numpy(np.stack(parts))


def normalised(images_NHWC: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Float pixels [N, 3, H, W], normalised by channel."""
    pixels = images_NHWC.permute(0, 3, 1, 2).float().div(255)
    shift, scale = (torch.tensor(v, device=pixels.device).view(1, 3, 1, 1) for v in (mean, std))
    return (pixels - shift) / scale


def normalisation_of(folder: Path) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation in `preprocessor_config.json`, by default ImageNet's."""
    file = folder / "preprocessor_config.json"
    given = read_json(file) if file.exists() else {}
    return given.get("image_mean", IMAGENET_MEAN), given.get("image_std", IMAGENET_STD)
