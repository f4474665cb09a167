"""Bilinear resizing as in TensorFlow 1, which published FIDs use."""

import torch
from torch import Tensor


def resize_like_tensorflow1(images_NCHW: Tensor, side: int) -> Tensor:
    """float32 [N, C, H, W] to [N, C, side, side]: output i is at i * H / side, no half-pixel shift.

    torch's own bilinear interpolation differs by up to 4 gray levels at 256 -> 299.
    """
    wide = _along(images_NCHW, side)
    return _along(wide.transpose(2, 3), side).transpose(2, 3)


def _along(images: Tensor, side: int) -> Tensor:
    """Interpolate along the last dimension."""
    size = images.shape[-1]
    scale = torch.tensor(size / side, dtype=torch.float32)
    places = torch.arange(side, dtype=torch.float32) * scale
    low = places.long()
    share = (places - low).to(images.device)
    high = (low + 1).clamp_max(size - 1)
    left, right = images[..., low.to(images.device)], images[..., high.to(images.device)]
    return left + (right - left) * share
