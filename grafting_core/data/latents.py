"""Training latents: what stages 1 and 2 draw from, with no state but (seed, step)."""

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
"""Fixed, because the batch size of a forward changes its low bits."""


@dataclass(frozen=True)
class Batch:
    """One step's draw: latents [B, C, h, w], noise of the same shape, timesteps [B], their conditions."""

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
        clean, noise, timesteps = (each.to(device) for each in (self.clean, self.noise, self.timesteps))
        return Batch(clean, noise, timesteps, self.conditions.to(device))


def predict_batch(backbone: Backbone, batch: Batch) -> Tensor:
    """The transformer's output on a batch's noised latents, both on its device."""
    noisy = objective_of(backbone.card).add_noise(batch.clean, batch.noise, batch.timesteps)
    return backbone.predict(noisy, batch.timesteps, batch.conditions)


class LatentDataset(Protocol):
    """Scaled latents [N, C, h, w] of one backbone with their conditions, on the CPU."""

    @property
    def digest(self) -> str:
        """Of the data that they are made of."""

    def __len__(self) -> int: ...

    def draw(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Latents of these rows [n]; a sample of their posterior where that is no point."""

    def conditions(self, rows: Tensor) -> Conditions:
        """Conditions of these rows [n]."""


@dataclass(frozen=True)
class EncodedImages:
    """Posterior moments [N, C, h, w] of images, all in memory."""

    digest: str
    mean: Tensor
    std: Tensor
    asked: Conditions

    def __len__(self) -> int:
        return len(self.mean)

    def draw(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        shape = (len(rows), *self.mean.shape[1:])
        return self.mean[rows] + self.std[rows] * torch.randn(shape, generator=generator)

    def conditions(self, rows: Tensor) -> Conditions:
        return self.asked.rows(rows)


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
    """Batches of a data set under an objective, each a function of (purpose, seed, step) alone."""

    dataset: LatentDataset
    objective: Objective

    def __len__(self) -> int:
        return len(self.dataset)

    @classmethod
    def of(cls, backbone: Backbone, dataset: LatentDataset) -> "Latents":
        """Under the objective that the backbone was trained with."""
        return cls(dataset, objective_of(backbone.card))

    def batch(self, purpose: str, seed: int, step: int, size: int) -> Batch:
        """Batch of step i: an epoch's permutation, a posterior sample, noise and timesteps.

        A function of its arguments alone, so resuming needs no generator state (paper Eq. 2: inputs noised).
        """
        rows = self.rows(purpose, seed, step, size)
        generator = generator_for(f"{purpose}/draw", seed, step)
        clean = self.dataset.draw(rows, generator)
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = self.objective.draw_timesteps(size, generator)
        return Batch(clean, noise, timesteps, self.dataset.conditions(rows))

    def rows(self, purpose: str, seed: int, step: int, size: int) -> Tensor:
        """Which samples step i draws: every epoch all of them, in an order of its own."""
        total, wanted, start = len(self), size, step * size
        parts: list[Tensor] = []
        while wanted:
            epoch, offset = divmod(start, total)
            order = torch.randperm(total, generator=generator_for(f"{purpose}/order", seed, epoch))
            parts.append(order[offset : offset + wanted])
            start, wanted = start + len(parts[-1]), wanted - len(parts[-1])
        return torch.cat(parts)


def generator_for(purpose: str, seed: int, index: int) -> torch.Generator:
    """A CPU generator of its own for every (purpose, seed, index); it uses 32 bits of the hash."""
    hashed = hashlib.sha256(f"{purpose}/{seed}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(hashed[:4], "little"))
