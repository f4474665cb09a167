"""Training latents: what stages 1 and 2 draw from, with no state but (seed, step)."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from grafting_core.backbones.registry import Backbone
from grafting_core.specs.sampling_steps import NUM_TIMESTEPS

ENCODE_BATCH = 100
"""Fixed, because the batch size of a forward changes its low bits."""


@dataclass(frozen=True)
class Batch:
    """One step's draw: latents z [B, C, h, w], noise of the same shape, timesteps [B], labels [B]."""

    clean: Tensor
    noise: Tensor
    timesteps: Tensor
    labels: Tensor

    def rows(self, part: slice) -> "Batch":
        """Some samples of the batch."""
        return Batch(self.clean[part], self.noise[part], self.timesteps[part], self.labels[part])

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(tensor.to(device) for tensor in (self.clean, self.noise, self.timesteps, self.labels)))


@dataclass(frozen=True)
class Latents:
    """Scaled posterior moments [N, C, h, w] and labels [N] of the images at hand, on the CPU."""

    mean: Tensor
    std: Tensor
    labels: Tensor

    def batch(self, purpose: str, seed: int, step: int, size: int) -> Batch:
        """Batch of step i: an epoch's permutation, a posterior sample, noise and uniform timesteps.

        A function of its arguments alone, so resuming needs no generator state (paper Eq. 2: inputs noised).
        """
        rows = self.rows(purpose, seed, step, size)
        generator = generator_for(f"{purpose}/draw", seed, step)
        shape = (size, *self.mean.shape[1:])
        clean = self.mean[rows] + self.std[rows] * torch.randn(shape, generator=generator)
        noise = torch.randn(shape, generator=generator)
        timesteps = torch.randint(0, NUM_TIMESTEPS, (size,), generator=generator)
        return Batch(clean, noise, timesteps, self.labels[rows])

    def rows(self, purpose: str, seed: int, step: int, size: int) -> Tensor:
        """Which images step i draws: every epoch all of them, in an order of its own."""
        total, wanted, start = len(self.labels), size, step * size
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


def first_of_each_class(labels: Tensor, count: int) -> Tensor:
    """Indices of `count` samples with classes as even as they come, in ascending order."""
    ranks = torch.zeros_like(labels)
    for label in labels.unique():
        members = (labels == label).nonzero().squeeze(1)
        ranks[members] = torch.arange(len(members))
    return torch.argsort(ranks, stable=True)[:count].sort().values


def encode_latents(backbone: Backbone, images: int) -> Latents:
    """Posterior moments of `images` of the backbone's training images, scaled to unit variance."""
    return _latents_of(backbone, backbone.images, backbone.labels, images)


def encode_held_out(backbone: Backbone) -> Latents:
    """The same of all its images that no training has seen. Raises ValueError where it has none."""
    images, labels = backbone.held_out
    if not len(labels):
        raise ValueError(f"backbone {backbone.card.name!r} has no images that are held out from training")
    return _latents_of(backbone, images, labels, len(labels))


@torch.no_grad()
def _latents_of(backbone: Backbone, images: Tensor, labels: Tensor, count: int) -> Latents:
    chosen = first_of_each_class(labels, count)
    pixels = images[chosen].float().div(127.5).sub(1).unsqueeze(1)
    parts = [_encode(backbone, chunk) for chunk in pixels.split(ENCODE_BATCH)]
    mean, std = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return Latents(mean, std, labels[chosen])


def _encode(backbone: Backbone, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    posterior = backbone.autoencoder.encode(pixels_BCHW.to(backbone.device)).latent_dist
    factor = backbone.scaling_factor
    return (posterior.mean * factor).cpu(), (posterior.std * factor).cpu()
