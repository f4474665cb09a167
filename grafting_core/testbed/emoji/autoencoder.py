"""Autoencoder: patches of 4 x 4 pixels, then convolutions on the small grid."""

import torch
from torch import Tensor, nn

PATCH = 4
WIDTH = 96
LATENT_CHANNELS = 4
LATENT_NOISE = 0.07
"""Standard deviation of the noise on latents (of unit variance) in the decoder's training."""


class ResidualBlock(nn.Module):
    """Two normalised 3 x 3 convolutions, added to the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        """Maps of the same shape."""
        result: Tensor = maps_BCHW + self.body(maps_BCHW)
        return result


class PatchAutoencoder(nn.Module):
    """[B, 3, H, W] in [-1, 1] to latents [B, 4, H/4, W/4] of unit variance; 0.75 M parameters.

    Most parameters are in the decoder. Convolutions at full resolution would take ten times as long.
    """

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        pixels = 3 * PATCH * PATCH
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(PATCH),
            nn.Conv2d(pixels, width, 3, padding=1),
            ResidualBlock(width),
            nn.SiLU(),
            nn.Conv2d(width, LATENT_CHANNELS, 3, padding=1),
        )
        self.scale = nn.BatchNorm2d(LATENT_CHANNELS, affine=False)
        self.decoder = nn.Sequential(
            nn.Conv2d(LATENT_CHANNELS, width, 3, padding=1),
            ResidualBlock(width),
            ResidualBlock(width),
            ResidualBlock(width),
            nn.SiLU(),
            nn.Conv2d(width, pixels, 3, padding=1),
            nn.PixelShuffle(PATCH),
        )

    def encode(self, pixels_BCHW: Tensor) -> Tensor:
        """Latents whose channels have mean 0 and variance 1 over scenes, as the diffusion process assumes."""
        latents: Tensor = self.scale(self.encoder(pixels_BCHW).float())
        return latents

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Pixels, about in [-1, 1]."""
        pixels: Tensor = self.decoder(latents_BCHW)
        return pixels

    @torch.no_grad()
    def reconstruct(self, pixels_BCHW: Tensor) -> Tensor:
        """Images after encoding and decoding."""
        return self.decode(self.encode(pixels_BCHW)).float().clamp(-1, 1)
