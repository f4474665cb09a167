"""Train the autoencoder, and compute latents and their scale."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from grafting_core.testbed.networks import FashionClassifier, build_autoencoder
from grafting_core.testbed.recipe.data import Bytes, read_split, to_pixels
from grafting_core.testbed.recipe.training import (
    Schedule,
    Trainer,
    batch_indices,
    own_rows,
    step_generator,
    world,
)

BATCH = 64
FEATURE_ROWS = 16
"""Rows of a batch in the feature loss: the classifier costs as much as the autoencoder."""
KL_WEIGHT = 1e-3
FEATURE_WEIGHT = 0.1


def train_autoencoder(work: Path, judge: FashionClassifier, seed: int, steps: int = 2200) -> AutoencoderKL:
    """Loss: L1 + squared error + small KL, and on some rows the distance of the classifier's features."""
    images, _ = read_split("train")
    torch.manual_seed(seed)
    model = build_autoencoder()

    def loss(step: int) -> Tensor:
        rows = batch_indices(step, BATCH, len(images), seed)
        return _loss(model, judge, to_pixels(images[rows.numpy()]), step_generator(seed, step))

    trainer = Trainer("autoencoder", model, Schedule(steps, 2e-3), loss, work, ema_decay=0.998)
    trainer.run()
    return averaged_autoencoder(trainer)


def averaged_autoencoder(trainer: Trainer) -> AutoencoderKL:
    """The EMA weights, in evaluation mode."""
    model = build_autoencoder()
    model.load_state_dict(trainer.ema)
    return model.eval().requires_grad_(False)


def _loss(
    model: AutoencoderKL, judge: FashionClassifier, pixels_BCHW: Tensor, generator: torch.Generator
) -> Tensor:
    draw = own_rows(torch.randn((len(pixels_BCHW), 4, 7, 7), generator=generator))
    pixels_BCHW = own_rows(pixels_BCHW)
    posterior = model.encode(pixels_BCHW).latent_dist
    restored = model.decode(posterior.mean + posterior.std * draw).sample
    difference = restored - pixels_BCHW
    divergence = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
    rows = FEATURE_ROWS // world()
    features = judge.features(restored[:rows]) - judge.features(pixels_BCHW[:rows])
    pixel_loss: Tensor = difference.abs().mean() + difference.square().mean()
    total: Tensor = pixel_loss + KL_WEIGHT * divergence + FEATURE_WEIGHT * features.square().mean()
    return total


@torch.no_grad()
def encode_all(model: AutoencoderKL, images: Bytes, chunk: int = 250) -> tuple[Tensor, Tensor]:
    """Posterior mean and standard deviation [N, 4, 7, 7] of every image, unscaled."""
    parts = [model.encode(to_pixels(images[i : i + chunk])).latent_dist for i in range(0, len(images), chunk)]
    return torch.cat([part.mean for part in parts]), torch.cat([part.std for part in parts])


def scaling_factor(mean: Tensor, std: Tensor) -> float:
    """Scale that gives latents drawn from these posteriors unit variance, as diffusion assumes."""
    return float(1 / (mean.var() + std.square().mean()).sqrt())
