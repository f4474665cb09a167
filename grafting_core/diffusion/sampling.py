"""Own sampling loop around the bare transformer, with guidance on some channels and noise levels.

Noise, step noise and label of sample i depend on (seed, i) alone. Every forward has the same shape, and
sample i stands at place i mod `micro_batch` of it, so images do not depend on who computes which of them.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from grafting_core.backbones.fast_forward import Forward, forward_of
from grafting_core.backbones.registry import Backbone
from grafting_core.diffusion.samplers import sampler_of
from grafting_core.specs.plans import EvaluationProtocol
from grafting_core.specs.sampling_steps import guides
from grafting_core.training.optim import autocast


def sample_labels(protocol: EvaluationProtocol, num_classes: int, indices: Sequence[int]) -> Tensor:
    """Labels [n]: `balanced` deals classes in turn, `uniform` draws from (seed, index)."""
    if protocol.labels == "balanced":
        return torch.tensor([index % num_classes for index in indices])
    return torch.tensor([_hash(f"label/{protocol.seed}/{index}") % num_classes for index in indices])


def noise_seeds(protocol: EvaluationProtocol, indices: Sequence[int]) -> list[int]:
    """One 32-bit seed a sample. Base plus index, since equal low 32 bits would mean equal noise."""
    base = _hash(f"noise/{protocol.seed}")
    return [(base + index) % 2**32 for index in indices]


def sample_generators(protocol: EvaluationProtocol, indices: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator a sample; it gives the initial noise, then each step's."""
    return [torch.Generator().manual_seed(seed) for seed in noise_seeds(protocol, indices)]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


@torch.no_grad()
def sample_latents(
    backbone: Backbone, transformer: nn.Module, protocol: EvaluationProtocol, indices: Sequence[int]
) -> Tensor:
    """Scaled latents [n, C, h, w] of these sample indices, on the transformer's device."""
    forward, found = forward_of(transformer), dict[int, Tensor]()
    for batch in _aligned(indices, protocol.micro_batch):
        latents = _MicroBatch(backbone, transformer, forward, protocol, batch).sample()
        check_finite(latents, "latents", batch)
        found |= {index: latents[index % protocol.micro_batch] for index in batch}
    return torch.stack([found[index] for index in indices])


def _aligned(indices: Sequence[int], size: int) -> list[list[int]]:
    """Batches of `size` in which index i stands at place i mod size; where none is wanted, another stands in.

    A kernel may round a row by its place, so a fixed shape alone would not fix every bit.
    """
    wanted = defaultdict[int, set[int]](set)
    for index in indices:
        wanted[index // size].add(index)
    return [
        [place if place in some else min(some) for place in range(group * size, (group + 1) * size)]
        for group, some in sorted(wanted.items())
    ]


@torch.no_grad()
def sample_images(
    backbone: Backbone, transformer: nn.Module, protocol: EvaluationProtocol, indices: Sequence[int]
) -> Tensor:
    """uint8 images [n, H, W] of these sample indices, on the CPU."""
    latents = sample_latents(backbone, transformer, protocol, indices)
    return decode(backbone, latents, protocol.micro_batch, indices)


def check_finite(values: Tensor, what: str, indices: Sequence[int]) -> None:
    """Raise ValueError naming the samples [n, ...] that hold NaN or infinities: clipping would hide them."""
    good = torch.isfinite(values).flatten(1).all(dim=1).tolist()
    bad = sorted({index for index, fine in zip(indices, good, strict=True) if not fine})
    if bad:
        raise ValueError(f"{what} of samples {bad[:10]} are not finite ({len(bad)} of this batch in all)")


@torch.no_grad()
def decode(backbone: Backbone, latents: Tensor, micro_batch: int, indices: Sequence[int]) -> Tensor:
    """uint8 images [n, H, W] of scaled latents, rounded half up and clipped.

    Raises ValueError naming the `indices` of samples that are not finite.
    """
    parts = []
    for first, chunk in zip(range(0, len(latents), micro_batch), latents.split(micro_batch), strict=True):
        padded = torch.cat([chunk, chunk[-1:].expand(micro_batch - len(chunk), *chunk.shape[1:])])
        pixels = backbone.autoencoder.decode(padded / backbone.scaling_factor).sample[: len(chunk)]
        check_finite(pixels, "pixels", indices[first : first + len(chunk)])
        parts.append(pixels.squeeze(1).mul(127.5).add(128).clamp(0, 255).to(torch.uint8).cpu())
    return torch.cat(parts)


@dataclass(frozen=True)
class _MicroBatch:
    """One batch of fixed size on its way from noise to latents."""

    backbone: Backbone
    transformer: nn.Module
    forward: Forward
    protocol: EvaluationProtocol
    indices: list[int]

    def sample(self) -> Tensor:
        protocol = self.protocol
        sampler = sampler_of(protocol.sampler, protocol.sampling_steps, protocol.spacing)
        generators = sample_generators(protocol, self.indices)
        labels, latents = self._labels(), self._noise(generators)
        for position, timestep in enumerate(sampler.timesteps):
            output = self._guided(latents, timestep, labels)
            latents = sampler.step(position, latents, output, lambda: self._noise(generators))
        return latents

    def _labels(self) -> Tensor:
        """Labels [n], followed by as many null labels for the guidance."""
        classes = self.backbone.card.num_classes
        labels = sample_labels(self.protocol, classes, self.indices)
        return torch.cat([labels, torch.full_like(labels, classes)]).to(self.backbone.device)

    def _noise(self, generators: list[torch.Generator]) -> Tensor:
        """Drawn on the CPU in single precision, whatever computes with it."""
        card = self.backbone.card
        side = [size * card.patch_size for size in card.dims.grid]
        draws = [torch.randn((card.latent_channels, *side), generator=generator) for generator in generators]
        return torch.stack(draws).to(next(self.transformer.parameters()))

    def _guided(self, latents: Tensor, timestep: int, labels: Tensor) -> Tensor:
        """Output [n, 2C, h, w] with the noise of both halves combined; variance is the conditional's."""
        protocol = self.protocol
        if not guides(protocol, timestep):
            return self._output(latents, timestep, labels[: len(latents)])
        output = self._output(torch.cat([latents, latents]), timestep, labels)
        conditional, unconditional = output.chunk(2)
        channels = 3 if protocol.guidance_channels == "first_3" else latents.shape[1]
        noise = unconditional[:, :channels].lerp(conditional[:, :channels], protocol.guidance)
        return torch.cat([noise, conditional[:, channels:]], dim=1)

    def _output(self, latents: Tensor, timestep: int, labels: Tensor) -> Tensor:
        with autocast(latents.device, self.protocol.precision):
            return self.forward(latents, timestep, labels).to(latents)
