"""Train denoiser and text encoder at 64 pixels, then the denoiser alone at larger resolutions."""

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import PixArtTransformer2DModel
from torch import Tensor, nn

from grafting_core.diffusion.schedule import add_noise, linear_schedule
from grafting_core.specs.noise import NUM_TIMESTEPS
from grafting_core.testbed.emoji.autoencoder import PatchAutoencoder
from grafting_core.testbed.emoji.recipe.settings import Settings, autocast, scaled_rate
from grafting_core.testbed.emoji.recipe.source import Source
from grafting_core.testbed.emoji.recipe.trainer import Rate, Trainer
from grafting_core.testbed.emoji.text_encoder import TextEncoder, token_table, tokenise
from grafting_core.testbed.emoji.transformer import (
    BASE_RESOLUTION,
    DEPTH,
    RESOLUTIONS,
    build_transformer,
    predict_noise,
    set_resolution,
)

BASE_RATE = 1e-3
HIGH_RATE = 5e-4
CAPTION_DROPOUT = 0.1
SNR_LIMIT = 5.0
"""Min-SNR weight (Hang et al. 2023): easy, nearly clean latents count less."""
ALTERNATION = 0.5
"""Share of the `high` phase with 192 pixels only; later steps alternate between 192 and 256."""


class Denoiser(nn.Module):
    """Transformer and text encoder, trained together."""

    def __init__(self, resolution: int = BASE_RESOLUTION, depth: int = DEPTH) -> None:
        super().__init__()
        self.transformer = build_transformer(resolution, depth)
        self.text_encoder = TextEncoder()

    def compile_blocks(self) -> None:
        """Compile the transformer's blocks; they are alike, so one compilation serves all."""
        for block in self.transformer.transformer_blocks:
            block.compile(dynamic=False)


def base_trainer(
    settings: Settings, source: Source, autoencoder: PatchAutoencoder, work: Path, depth: int = DEPTH
) -> Trainer:
    """Trainer at 64 pixels, with all parameters."""
    torch.manual_seed(settings.seed + 2)
    model = Denoiser(depth=depth).to(source.device)
    if settings.compiled:
        model.compile_blocks()
    batch = settings.batches["base"]
    rate = Rate(scaled_rate(BASE_RATE, "base", batch), warmup=500)
    loss = _denoising_loss(model, source, autoencoder, batch, lambda step, progress: BASE_RESOLUTION)
    return Trainer("base", model, rate, settings.budgets["base"], loss, work, batch, ema_decay=0.9995)


def high_trainer(
    settings: Settings,
    source: Source,
    autoencoder: PatchAutoencoder,
    start: Trainer,
    work: Path,
    depth: int = DEPTH,
) -> Trainer:
    """Trainer at larger resolutions from the EMA weights of `start`; the text encoder is frozen."""
    model = Denoiser(RESOLUTIONS[1], depth)
    model.load_state_dict(start.ema)
    model.to(source.device).text_encoder.requires_grad_(False)
    if settings.compiled:
        model.compile_blocks()
    batch = settings.batches["high"]
    loss = _denoising_loss(model, source, autoencoder, batch, high_resolution)
    rate = Rate(scaled_rate(HIGH_RATE, "high", batch), warmup=100)
    return Trainer("high", model, rate, settings.budgets["high"], loss, work, batch)


def high_resolution(step: int, progress: float) -> int:
    """192 pixels; from ALTERNATION on, every other step 256."""
    return RESOLUTIONS[2 if progress >= ALTERNATION and step % 2 else 1]


def _denoising_loss(
    model: Denoiser,
    source: Source,
    autoencoder: PatchAutoencoder,
    batch: int,
    resolution_of: Callable[[int, float], int],
) -> Callable[[int, float], Tensor]:
    schedule = linear_schedule()
    snr = schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)
    weights = (snr.clamp(max=SNR_LIMIT) / snr).float().to(source.device)
    tokens_of, null = token_table().to(source.device), torch.tensor(tokenise("")).to(source.device)

    def loss(step: int, progress: float) -> Tensor:
        resolution = resolution_of(step, progress)
        scenes = source.batch(step, batch, resolution)
        set_resolution(model.transformer, resolution)
        with torch.no_grad(), autocast(source.device):
            clean = autoencoder.encode(scenes.pictures)
        generator = source.generator(step, source.device, use=2)
        tokens = tokens_of[scenes.rows.to(source.device, non_blocking=True)].long()
        dropped = torch.rand((batch, 1), generator=generator, device=source.device) < CAPTION_DROPOUT
        timesteps = torch.randint(0, NUM_TIMESTEPS, (batch,), generator=generator, device=source.device)
        noise = torch.randn(clean.shape, generator=generator, device=source.device)
        noisy = add_noise(schedule, clean, noise, timesteps)
        with autocast(source.device):
            embeddings, mask = model.text_encoder(torch.where(dropped, null, tokens))
            predicted = predict_noise(model.transformer, noisy, timesteps, embeddings, mask)
        error = (predicted.float() - noise).square().flatten(1).mean(1)
        total: Tensor = (weights[timesteps] * error).mean()
        return total

    return loss


def averaged_transformer(trainer: Trainer) -> tuple[PixArtTransformer2DModel, TextEncoder]:
    """The EMA weights of both networks, frozen, not compiled."""
    trained = trainer.model
    assert isinstance(trained, Denoiser)
    resolution = RESOLUTIONS[1] if trainer.name == "high" else BASE_RESOLUTION
    model = Denoiser(resolution, len(trained.transformer.transformer_blocks))
    model.load_state_dict(trainer.ema)
    model.to(next(trained.parameters()).device).eval().requires_grad_(False)
    return model.transformer, model.text_encoder
