"""Sampling loop around the transformer, with guidance on some channels and noise levels.

Noise, step noise and conditions of sample i depend only on (seed, i). Every forward has the same shape, and
sample i is in row i mod `micro_batch` of it, so images do not depend on how samples are split over processes.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from grafting_core.backbones.autoencoder import images_of, images_of_diffusers
from grafting_core.backbones.base import Backbone, Forward
from grafting_core.backbones.conditions import Conditions
from grafting_core.diffusion.diffusers_pipeline import pipeline_latents
from grafting_core.diffusion.objective import objective_of
from grafting_core.diffusion.precision import autocast
from grafting_core.diffusion.samplers import sampler_of
from grafting_core.specs.plans import EvaluationProtocol
from grafting_core.specs.sampling_steps import guides


def sample_labels(protocol: EvaluationProtocol, num_classes: int, indices: Sequence[int]) -> Tensor:
    """Labels [n]: `balanced` cycles through the classes, `uniform` draws from (seed, index).

    All are 0 if there are no classes.
    """
    if num_classes == 0:
        return torch.zeros(len(indices), dtype=torch.int64)
    if protocol.labels == "balanced":
        return torch.tensor([index % num_classes for index in indices])
    return torch.tensor([_hash(f"label/{protocol.seed}/{index}") % num_classes for index in indices])


def sample_conditions(backbone: Backbone, protocol: EvaluationProtocol, indices: Sequence[int]) -> Conditions:
    """Conditions of these samples, on the CPU."""
    return backbone.label_conditions(sample_labels(protocol, backbone.card.num_classes, indices))


def noise_seeds(protocol: EvaluationProtocol, indices: Sequence[int]) -> list[int]:
    """32-bit seed per sample: base plus index, because equal low 32 bits would give equal noise."""
    base = _hash(f"noise/{protocol.seed}")
    return [(base + index) % 2**32 for index in indices]


def sample_generators(protocol: EvaluationProtocol, indices: Sequence[int]) -> list[torch.Generator]:
    """CPU generator per sample; it gives the initial noise, then each step's noise."""
    return [torch.Generator().manual_seed(seed) for seed in noise_seeds(protocol, indices)]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


@torch.no_grad()
def sample_latents(
    backbone: Backbone, transformer: nn.Module, protocol: EvaluationProtocol, indices: Sequence[int]
) -> Tensor:
    """Scaled latents [n, C, h, w] of these sample indices, on the transformer's device."""
    sampled = backbone.with_transformer(transformer)
    forward, by_index = sampled.sampling_forward(), dict[int, Tensor]()
    for batch in _aligned(indices, protocol.micro_batch):
        latents = _MicroBatch(sampled, forward, protocol, batch).sample()
        check_finite(latents, "latents", batch)
        by_index |= {index: latents[index % protocol.micro_batch] for index in batch}
    return torch.stack([by_index[index] for index in indices])


def _aligned(indices: Sequence[int], size: int) -> list[list[int]]:
    """Batches of `size` with index i in row i mod size; unused rows repeat a requested index.

    A kernel may round a row depending on its position, so a fixed shape alone would not fix every bit.
    """
    groups = defaultdict[int, set[int]](set)
    for index in indices:
        groups[index // size].add(index)
    return [
        [index if index in members else min(members) for index in range(group * size, (group + 1) * size)]
        for group, members in sorted(groups.items())
    ]


@torch.no_grad()
def sample_images(
    backbone: Backbone, transformer: nn.Module, protocol: EvaluationProtocol, indices: Sequence[int]
) -> Tensor:
    """uint8 images, gray [n, H, W] or with channels [n, H, W, C], of these sample indices, on the CPU."""
    latents = sample_latents(backbone, transformer, protocol, indices)
    return decode(backbone, latents, protocol, indices)


def check_finite(values: Tensor, what: str, indices: Sequence[int]) -> None:
    """Raise ValueError with the samples [n, ...] that have NaN or infinities: clipping would hide them."""
    good = torch.isfinite(values).flatten(1).all(dim=1).tolist()
    bad = sorted({index for index, fine in zip(indices, good, strict=True) if not fine})
    if bad:
        raise ValueError(f"{what} of samples {bad[:10]} are not finite ({len(bad)} of this batch in all)")


@torch.no_grad()
def decode(
    backbone: Backbone, latents: Tensor, protocol: EvaluationProtocol, indices: Sequence[int]
) -> Tensor:
    """uint8 images, gray [n, H, W] or with channels [n, H, W, C], of scaled latents.

    Raises ValueError with the `indices` of samples that are not finite.
    """
    parts, micro_batch = [], protocol.micro_batch
    rounded = images_of_diffusers if protocol.pipeline == "diffusers" else images_of
    for first, chunk in zip(range(0, len(latents), micro_batch), latents.split(micro_batch), strict=True):
        padded = torch.cat([chunk, chunk[-1:].expand(micro_batch - len(chunk), *chunk.shape[1:])])
        pixels = backbone.autoencoder.decode(padded)[: len(chunk)]
        check_finite(pixels, "pixels", indices[first : first + len(chunk)])
        parts.append(rounded(pixels))
    return torch.cat(parts)


@dataclass(frozen=True)
class _MicroBatch:
    """Sampling of one batch of fixed size."""

    backbone: Backbone
    forward: Forward
    protocol: EvaluationProtocol
    indices: list[int]

    def sample(self) -> Tensor:
        return self._by_pipeline() if self.protocol.pipeline == "diffusers" else self._by_sampler()

    def _by_pipeline(self) -> Tensor:
        card, generators = self.backbone.card, sample_generators(self.protocol, self.indices)
        labels = sample_labels(self.protocol, card.num_classes, self.indices).tolist()
        noise = self._noise(generators)
        return pipeline_latents(card, self.backbone.transformer, self.protocol, labels, noise, generators)

    def _by_sampler(self) -> Tensor:
        protocol, objective = self.protocol, objective_of(self.backbone.card)
        sampler = sampler_of(protocol.sampler, objective, protocol.sampling_steps, protocol.spacing)
        generators = sample_generators(protocol, self.indices)
        conditions, latents = self._conditions(), self._noise(generators)
        for position, timestep in enumerate(sampler.timesteps):
            seen = objective.model_timesteps(torch.tensor([timestep])).item()
            if guides(protocol, timestep, objective.noise_levels):
                output = self._guided(latents, seen, conditions)
            else:
                output = self._output(latents, seen, conditions.rows(slice(len(latents))))
            timesteps_B = torch.full((len(latents),), timestep, device=latents.device)
            predicted = objective.prediction(output, latents, timesteps_B)
            latents = sampler.step(position, latents, predicted, lambda: self._noise(generators))
        return latents

    def _conditions(self) -> Conditions:
        """Conditions of n samples, followed by as many null conditions for guidance."""
        conditional = sample_conditions(self.backbone, self.protocol, self.indices)
        null = self.backbone.null_conditions(len(self.indices))
        return conditional.followed_by(null).to(self.backbone.device)

    def _noise(self, generators: list[torch.Generator]) -> Tensor:
        """Noise drawn on the CPU in single precision, for any device and precision."""
        shape = self.backbone.latent_shape
        draws = [torch.randn(shape, generator=generator) for generator in generators]
        return torch.stack(draws).to(next(self.backbone.transformer.parameters()))

    def _guided(self, latents: Tensor, timestep: float, conditions: Conditions) -> Tensor:
        """Output with guided prediction; other channels are those of the conditional output."""
        output = self._output(torch.cat([latents, latents]), timestep, conditions)
        conditional, unconditional = output.chunk(2)
        few = self.protocol.guidance_channels == "first_3"
        channels = min(3, latents.shape[1]) if few else latents.shape[1]
        noise = unconditional[:, :channels].lerp(conditional[:, :channels], self.protocol.guidance)
        return torch.cat([noise, conditional[:, channels:]], dim=1)

    def _output(self, latents: Tensor, timestep: float, conditions: Conditions) -> Tensor:
        with autocast(latents.device, self.protocol.precision):
            return self.forward(latents, timestep, conditions).to(latents)
