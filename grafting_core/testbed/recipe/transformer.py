"""Pretrain the diffusion transformer on the autoencoder's latents."""

from pathlib import Path

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor

from grafting_core.diffusion.schedule import add_noise, denoising_loss, linear_schedule
from grafting_core.specs.noise import NUM_TIMESTEPS
from grafting_core.testbed.networks import NULL_LABEL, build_transformer
from grafting_core.testbed.recipe.training import Schedule, Trainer, batch_indices, own_rows, step_generator

BATCH = 128
PEAK_RATE = 1e-3
LABEL_DROPOUT = 0.1


def transformer_trainer(
    work: Path, moments: tuple[Tensor, Tensor], labels_N: Tensor, seed: int, steps: int, depth: int = 8
) -> Trainer:
    """Trainer over scaled posterior moments (mean, std) [N, 4, 7, 7] and labels [N].

    DiT's recipe: uniform timesteps, noise MSE plus variational bound, labels dropped outside the model.
    """
    torch.manual_seed(seed)
    model = build_transformer(depth)
    schedule = linear_schedule()

    def loss(step: int) -> Tensor:
        rows = batch_indices(step, BATCH, len(labels_N), seed)
        generator = step_generator(seed, step)
        clean = moments[0][rows] + moments[1][rows] * torch.randn(moments[0][rows].shape, generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = torch.randint(0, NUM_TIMESTEPS, (len(rows),), generator=generator)
        dropped = torch.rand(len(rows), generator=generator) < LABEL_DROPOUT
        labels = torch.where(dropped, NULL_LABEL, labels_N[rows])
        clean, noise, timesteps, labels = map(own_rows, (clean, noise, timesteps, labels))
        noisy = add_noise(schedule, clean, noise, timesteps)
        output = model(noisy, timestep=timesteps, class_labels=labels).sample
        return denoising_loss(schedule, output, clean, noise, timesteps).mean()

    return Trainer("transformer", model, Schedule(steps, PEAK_RATE), loss, work, ema_decay=0.9995)


def averaged_transformer(trainer: Trainer, depth: int = 8) -> DiTTransformer2DModel:
    """The EMA weights, in evaluation mode."""
    model = build_transformer(depth)
    model.load_state_dict(trainer.ema)
    return model.eval().requires_grad_(False)
