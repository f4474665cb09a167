"""Train the autoencoder on scenes of all resolutions."""

from pathlib import Path

import torch
from torch import Tensor

from grafting_core.testbed.emoji.autoencoder import LATENT_NOISE, PatchAutoencoder
from grafting_core.testbed.emoji.recipe.settings import Settings, autocast, scaled_rate
from grafting_core.testbed.emoji.recipe.source import Source
from grafting_core.testbed.emoji.recipe.trainer import Rate, Trainer
from grafting_core.testbed.emoji.transformer import BASE_RESOLUTION, RESOLUTIONS

PEAK_RATE = 1e-3
CALIBRATION_BATCHES = 8
CALIBRATION_IMAGES = 72
"""Batch size at 64 pixels; larger resolutions have as many pixels per batch."""


def autoencoder_trainer(settings: Settings, source: Source, work: Path) -> Trainer:
    """Trainer: half of the batches at 64 pixels, half at larger resolutions, with equal numbers of pixels."""
    torch.manual_seed(settings.seed)
    model = PatchAutoencoder().to(source.device)
    batch = settings.batches["autoencoder"]

    def loss(step: int, progress: float) -> Tensor:
        resolution = BASE_RESOLUTION if step % 2 == 0 else RESOLUTIONS[1 + step // 2 % 2]
        count = max(1, batch * BASE_RESOLUTION**2 // resolution**2)
        pictures = source.batch(step, count, resolution).pictures
        return _loss(model, pictures, source.generator(step, source.device, use=2))

    return Trainer(
        "autoencoder",
        model,
        Rate(scaled_rate(PEAK_RATE, "autoencoder", batch)),
        settings.budgets["autoencoder"],
        loss,
        work,
        batch,
        ema_decay=0.998,
    )


def _loss(model: PatchAutoencoder, pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Absolute and squared error of pixels, and absolute error of differences of neighbours (edges)."""
    with autocast(pictures.device):
        latents = model.encode(pictures)
        noise = torch.randn(latents.shape, generator=generator, device=latents.device)
        restored = model.decode(latents + LATENT_NOISE * noise)
    error = restored.float() - pictures
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    total: Tensor = error.abs().mean() + error.square().mean() + edges
    return total


@torch.no_grad()
def averaged_autoencoder(trainer: Trainer, source: Source) -> PatchAutoencoder:
    """The EMA weights, with latent mean and variance measured over scenes of two resolutions."""
    model = PatchAutoencoder().to(source.device)
    model.load_state_dict(trainer.ema)
    model.scale.reset_running_stats()
    model.scale.momentum = None  # a plain mean over the batches
    model.train()
    for step in range(CALIBRATION_BATCHES):
        resolution = RESOLUTIONS[step % 2]
        count = CALIBRATION_IMAGES * BASE_RESOLUTION**2 // resolution**2
        model.encode(source.batch(-1 - step, count, resolution).pictures)
    return model.eval().requires_grad_(False)
