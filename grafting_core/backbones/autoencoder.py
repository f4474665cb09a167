"""Autoencoders: pixels to scaled latents and back, and conversion of images to pixels."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor


class Autoencoder(Protocol):
    """Maps pixels [B, C, H, W] in [-1, 1] to latents of about unit variance and back."""

    @property
    def pixels_per_cell(self) -> int:
        """Side in pixels of the square that one latent cell represents."""

    def encode(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [B, c, h, w] of the latents' posterior; zero if it is a point."""

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Pixels, not clipped."""


@dataclass(frozen=True)
class KLAutoencoder:
    """Autoencoder of diffusers; its config has the scale and, in some families, a shift."""

    model: Any
    folder: Path | None = None
    """The folder that it was loaded from, if its files are to be kept as they are when it is written."""

    @property
    def scale(self) -> float:
        return float(self.model.config.scaling_factor)

    @property
    def shift(self) -> float:
        return float(getattr(self.model.config, "shift_factor", None) or 0.0)

    @property
    def pixels_per_cell(self) -> int:
        """Each of the decoder's stages except the last doubles the side."""
        return int(2 ** (len(self.model.config.block_out_channels) - 1))

    def encode(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.model.encode(pixels_BCHW).latent_dist
        mean: Tensor = posterior.mean - self.shift if self.shift else posterior.mean
        return mean * self.scale, posterior.std * self.scale

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        unscaled = latents_BCHW / self.scale
        pixels: Tensor = self.model.decode(unscaled + self.shift if self.shift else unscaled).sample
        return pixels


@dataclass(frozen=True)
class IdentityAutoencoder:
    """Autoencoder for models that work on pixels: latents are the pixels."""

    pixels_per_cell: int = 1

    def encode(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        return pixels_BCHW, torch.zeros_like(pixels_BCHW)

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        return latents_BCHW


def pixels_of(images: Tensor) -> Tensor:
    """uint8 images, gray [N, H, W] or with channels [N, H, W, C] -> float pixels [N, C, H, W] in [-1, 1]."""
    pixels = images.float().div(127.5).sub(1)
    return pixels.unsqueeze(1) if images.dim() == 3 else pixels.permute(0, 3, 1, 2).contiguous()


def images_of(pixels_BCHW: Tensor) -> Tensor:
    """Pixels -> uint8 images on the CPU, rounded half up and clipped; [N, H, W] for one channel."""
    return _channels_last(pixels_BCHW.mul(127.5).add(128).clamp(0, 255))


def images_of_diffusers(pixels_BCHW: Tensor) -> Tensor:
    """As `images_of`, but rounded as diffusers' pipelines do: halves to the even neighbour."""
    return _channels_last((pixels_BCHW / 2 + 0.5).clamp(0, 1).mul(255).round())


def _channels_last(values_BCHW: Tensor) -> Tensor:
    """uint8 on the CPU, [N, H, W] for one channel, else [N, H, W, C]."""
    images = values_BCHW.to(torch.uint8)
    placed = images.squeeze(1) if images.shape[1] == 1 else images.permute(0, 2, 3, 1)
    return placed.cpu().contiguous()
