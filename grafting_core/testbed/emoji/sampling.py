"""Sampling from captions: DDIM with guidance in latents, then the decoder."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from diffusers import PixArtTransformer2DModel
from torch import Tensor

from grafting_core.diffusion.schedule import linear_schedule
from grafting_core.specs.noise import NUM_TIMESTEPS
from grafting_core.testbed.emoji.autoencoder import LATENT_CHANNELS, PATCH, PatchAutoencoder
from grafting_core.testbed.emoji.text_encoder import TextEncoder, token_batch
from grafting_core.testbed.emoji.transformer import predict_noise, set_resolution

STEPS = 25
GUIDANCE = 3.0


@dataclass(frozen=True)
class Painter:
    """The three networks that generate images from captions, and the sampling settings."""

    transformer: PixArtTransformer2DModel
    text_encoder: TextEncoder
    autoencoder: PatchAutoencoder
    resolution: int
    steps: int = STEPS
    guidance: float = GUIDANCE

    @torch.no_grad()
    def paint(self, texts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """Images [B, 3, R, R] in [-1, 1]; each depends only on its own caption and seed."""
        noise = torch.stack([self._noise(seed) for seed in seeds]).to(self._device)
        return self.autoencoder.decode(self.denoise(texts, noise)).float().clamp(-1, 1)

    @property
    def _device(self) -> torch.device:
        return next(self.autoencoder.parameters()).device

    def _noise(self, seed: int) -> Tensor:
        side = self.resolution // PATCH
        return torch.randn((LATENT_CHANNELS, side, side), generator=torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def denoise(self, texts: Sequence[str], latents_BCHW: Tensor) -> Tensor:
        """Clean latents by DDIM without noise, guided against the empty caption."""
        set_resolution(self.transformer, self.resolution)
        tokens = token_batch([*texts, *[""] * len(texts)]).to(latents_BCHW.device)
        embeddings, mask = self.text_encoder(tokens)
        latents = latents_BCHW
        for timestep, signal, following in visits(self.steps):
            times = torch.full((2 * len(latents),), timestep, device=latents.device)
            with_caption, without = (
                predict_noise(self.transformer, torch.cat([latents, latents]), times, embeddings, mask)
                .float()
                .chunk(2)
            )
            noise = without + self.guidance * (with_caption - without)
            latents = ddim_step(latents, noise, signal, following)
        return latents


def ddim_step(latents: Tensor, noise: Tensor, signal: float, following: float) -> Tensor:
    """Latents at the next timestep, from their noise and the cumulative alphas of both timesteps."""
    clean = (latents - (1 - signal) ** 0.5 * noise) / signal**0.5
    after: Tensor = following**0.5 * clean + (1 - following) ** 0.5 * noise
    return after


def visits(steps: int) -> Iterator[tuple[int, float, float]]:
    """Timestep, its cumulative alpha and that of the next timestep; evenly spaced, descending."""
    cumulative = linear_schedule().alphas_cumprod
    places = torch.linspace(NUM_TIMESTEPS - 1, 0, steps).round().long().tolist()
    levels = [*(float(cumulative[place]) for place in places), 1.0]
    yield from zip(places, levels, levels[1:], strict=False)
