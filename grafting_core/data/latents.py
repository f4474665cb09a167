"""Training latents for stages 1 and 2; each batch depends only on (purpose, seed, step)."""

import hashlib
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from grafting_core.backbones.autoencoder import pixels_of
from grafting_core.backbones.base import Backbone
from grafting_core.backbones.conditions import Conditions
from grafting_core.diffusion.objective import Objective, objective_of

ENCODE_BATCH = 100
"""Constant, because the batch size of a forward changes the low bits of the result."""


@dataclass(frozen=True)
class Batch:
    """Data of one step: latents [B, C, h, w], noise of the same shape, timesteps [B], their conditions."""

    clean: Tensor
    noise: Tensor
    timesteps: Tensor
    conditions: Conditions

    def __len__(self) -> int:
        return len(self.clean)

    def rows(self, part: slice) -> "Batch":
        """Some samples of the batch."""
        conditions = self.conditions.rows(part)
        return Batch(self.clean[part], self.noise[part], self.timesteps[part], conditions)

    def to(self, device: torch.device) -> "Batch":
        clean, noise, timesteps = (part.to(device) for part in (self.clean, self.noise, self.timesteps))
        return Batch(clean, noise, timesteps, self.conditions.to(device))


def predict_batch(backbone: Backbone, batch: Batch) -> Tensor:
    """The transformer's output on a batch's noised latents, both on its device."""
    objective = objective_of(backbone.card)
    noisy = objective.add_noise(batch.clean, batch.noise, batch.timesteps)
    return backbone.predict(noisy, objective.model_timesteps(batch.timesteps), batch.conditions)


class LatentDataset(Protocol):
    """Scaled latents [N, C, h, w] of one backbone with their conditions, on the CPU."""

    @property
    def digest(self) -> str:
        """Digest of the data that the latents are computed from."""

    def __len__(self) -> int: ...

    def draw(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Latents of these rows [n], sampled from their posterior unless it is a point."""

    def conditions(self, rows: Tensor) -> Conditions:
        """Conditions of these rows [n]."""


@dataclass(frozen=True)
class EncodedImages:
    """Posterior moments [N, C, h, w] of images, all in memory."""

    digest: str
    mean: Tensor
    std: Tensor
    all_conditions: Conditions

    def __len__(self) -> int:
        return len(self.mean)

    def draw(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        shape = (len(rows), *self.mean.shape[1:])
        return self.mean[rows] + self.std[rows] * torch.randn(shape, generator=generator)

    def conditions(self, rows: Tensor) -> Conditions:
        return self.all_conditions.rows(rows)


@torch.no_grad()
def encode_images(backbone: Backbone, images: Tensor, labels: Tensor, digest: str) -> EncodedImages:
    """Posterior moments of uint8 images with labels [N], scaled to unit variance."""
    parts = [
        backbone.autoencoder.encode(pixels_of(chunk).to(backbone.device))
        for chunk in images.split(ENCODE_BATCH)
    ]
    mean, std = (torch.cat([part.cpu() for part in tensors]) for tensors in zip(*parts, strict=True))
    return EncodedImages(digest, mean, std, backbone.label_conditions(labels))


@dataclass(frozen=True)
class Latents:
    """Batches of a data set under an objective, each determined by (purpose, seed, step)."""

    dataset: LatentDataset
    objective: Objective

    def __len__(self) -> int:
        return len(self.dataset)

    @classmethod
    def of(cls, backbone: Backbone, dataset: LatentDataset) -> "Latents":
        """Latents under the objective that the backbone was trained with."""
        return cls(dataset, objective_of(backbone.card))

    def batch(self, purpose: str, seed: int, step: int, size: int) -> Batch:
        """Batch of step i: part of an epoch's permutation, posterior samples, noise and timesteps.

        Determined by its arguments, so resuming needs no generator state (paper Eq. 2: inputs are noised).
        """
        rows = self.rows(purpose, seed, step, size)
        generator = generator_for(f"{purpose}/draw", seed, step)
        clean = self.dataset.draw(rows, generator)
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = self.objective.draw_timesteps(size, generator)
        return Batch(clean, noise, timesteps, self.dataset.conditions(rows))

    def rows(self, purpose: str, seed: int, step: int, size: int) -> Tensor:
        """Samples of step i: every epoch has all samples, in its own order."""
        total, missing, start = len(self), size, step * size
        parts: list[Tensor] = []
        while missing:
            epoch, offset = divmod(start, total)
            order = torch.randperm(total, generator=generator_for(f"{purpose}/order", seed, epoch))
            parts.append(order[offset : offset + missing])
            start, missing = start + len(parts[-1]), missing - len(parts[-1])
        return torch.cat(parts)


def generator_for(purpose: str, seed: int, index: int) -> torch.Generator:
    """CPU generator for (purpose, seed, index), seeded with 32 bits of a hash of them."""
    hashed = hashlib.sha256(f"{purpose}/{seed}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(hashed[:4], "little"))
