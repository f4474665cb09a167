"""Own sampling loop around the bare transformer: learned-variance DDPM and DDIM with guidance.

Noise and label of sample i depend on (seed, i) alone, and every forward has the same shape, so the images
do not depend on who computes which of them.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from grafting_core.backbones.loader import Backbone
from grafting_core.diffusion import (
    NUM_TIMESTEPS,
    NoiseSchedule,
    learned_log_variance,
    linear_schedule,
    posterior_mean,
    predict_clean,
    schedule_from_betas,
)
from grafting_core.spec.plans import EvaluationProtocol


def timesteps_of(steps: int) -> list[int]:
    """Ascending timesteps, evenly spaced from 0 to 999 and rounded (ADM's respacing)."""
    if steps == 1:
        return [NUM_TIMESTEPS - 1]
    return [round(index * (NUM_TIMESTEPS - 1) / (steps - 1)) for index in range(steps)]


def respaced(timesteps: Sequence[int]) -> NoiseSchedule:
    """The schedule that visits only these timesteps of the full one."""
    kept = linear_schedule().alphas_cumprod[list(timesteps)]
    previous = torch.cat([torch.ones(1, dtype=kept.dtype), kept[:-1]])
    return schedule_from_betas(1 - kept / previous)


def sample_labels(protocol: EvaluationProtocol, num_classes: int, indices: Sequence[int]) -> Tensor:
    """Labels [n]: `balanced` deals classes in turn, `uniform` draws from (seed, index)."""
    if protocol.labels == "balanced":
        return torch.tensor([index % num_classes for index in indices])
    return torch.tensor([_hash(f"label/{protocol.seed}/{index}") % num_classes for index in indices])


def sample_generators(protocol: EvaluationProtocol, indices: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator a sample. Base plus index, since equal low 32 bits would mean equal noise."""
    base = _hash(f"noise/{protocol.seed}")
    return [torch.Generator().manual_seed((base + index) % 2**32) for index in indices]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


@torch.no_grad()
def sample_latents(
    backbone: Backbone, transformer: nn.Module, protocol: EvaluationProtocol, indices: Sequence[int]
) -> Tensor:
    """Scaled latents [n, C, h, w] of these sample indices, on the transformer's device."""
    parts = []
    for start in range(0, len(indices), protocol.micro_batch):
        wanted = list(indices[start : start + protocol.micro_batch])
        # Padding keeps the forward's shape, and with it every bit, the same for a short last batch.
        padded = wanted + [wanted[-1]] * (protocol.micro_batch - len(wanted))
        parts.append(_MicroBatch(backbone, transformer, protocol, padded).sample()[: len(wanted)])
    return torch.cat(parts)


@torch.no_grad()
def sample_images(
    backbone: Backbone, transformer: nn.Module, protocol: EvaluationProtocol, indices: Sequence[int]
) -> Tensor:
    """uint8 images [n, H, W] of these sample indices, on the CPU."""
    latents = sample_latents(backbone, transformer, protocol, indices)
    return decode(backbone, latents, protocol.micro_batch)


@torch.no_grad()
def decode(backbone: Backbone, latents: Tensor, micro_batch: int) -> Tensor:
    """uint8 images [n, H, W] of scaled latents, rounded half up and clipped."""
    parts = []
    for chunk in latents.split(micro_batch):
        padded = torch.cat([chunk, chunk[-1:].expand(micro_batch - len(chunk), *chunk.shape[1:])])
        pixels = backbone.autoencoder.decode(padded / backbone.scaling_factor).sample[: len(chunk)]
        parts.append(pixels.squeeze(1).mul(127.5).add(128).clamp(0, 255).to(torch.uint8).cpu())
    return torch.cat(parts)


@dataclass(frozen=True)
class _MicroBatch:
    """One batch of fixed size on its way from noise to latents."""

    backbone: Backbone
    transformer: nn.Module
    protocol: EvaluationProtocol
    indices: list[int]

    def sample(self) -> Tensor:
        timesteps = timesteps_of(self.protocol.sampling_steps)
        schedule = respaced(timesteps)
        generators = sample_generators(self.protocol, self.indices)
        labels = self._labels()
        latents = self._noise(generators)
        for position in reversed(range(len(timesteps))):
            output = self._guided(latents, timesteps[position], labels)
            latents = self._step(schedule, position, latents, output, generators)
        return latents

    def _labels(self) -> Tensor:
        """Labels [n], followed by as many null labels where guidance asks for both halves."""
        classes = self.backbone.card.num_classes
        labels = sample_labels(self.protocol, classes, self.indices)
        both = torch.cat([labels, torch.full_like(labels, classes)]) if self.protocol.guidance > 1 else labels
        return both.to(self.backbone.device)

    def _noise(self, generators: list[torch.Generator]) -> Tensor:
        card = self.backbone.card
        side = [size * card.patch_size for size in card.dims.grid]
        draws = [torch.randn((card.latent_channels, *side), generator=generator) for generator in generators]
        return torch.stack(draws).to(self.backbone.device)

    def _guided(self, latents: Tensor, timestep: int, labels: Tensor) -> Tensor:
        """Output [n, 2C, h, w] with the noise of both halves combined; variance is the conditional's."""
        protocol = self.protocol
        doubled = torch.cat([latents, latents]) if protocol.guidance > 1 else latents
        timesteps = torch.full((len(doubled),), timestep, device=latents.device)
        output: Tensor = self.transformer(doubled, timestep=timesteps, class_labels=labels).sample
        if protocol.guidance <= 1:
            return output
        conditional, unconditional = output.chunk(2)
        channels = 3 if protocol.guidance_channels == "first_3" else latents.shape[1]
        noise = unconditional[:, :channels].lerp(conditional[:, :channels], protocol.guidance)
        return torch.cat([noise, conditional[:, channels:]], dim=1)

    def _step(
        self,
        schedule: NoiseSchedule,
        position: int,
        latents: Tensor,
        output: Tensor,
        generators: list[torch.Generator],
    ) -> Tensor:
        noise, fraction = output.chunk(2, dim=1)
        where = torch.full((len(latents),), position, device=latents.device)
        clean = predict_clean(schedule, latents, noise, where)
        if self.protocol.sampler == "ddim":
            kept = schedule.alphas_cumprod_prev[position].to(latents)
            return kept.sqrt() * clean + (1 - kept).sqrt() * noise
        mean = posterior_mean(schedule, clean, latents, where)
        if position == 0:
            return mean
        deviation = torch.exp(0.5 * learned_log_variance(schedule, fraction, where))
        return mean + deviation * self._noise(generators)
