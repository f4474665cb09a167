"""Stage 3: samples to features to figures."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from grafting_core.backbones.loader import Backbone
from grafting_core.data import Latents
from grafting_core.diffusion import add_noise, denoising_loss, linear_schedule
from grafting_core.metrics.frechet import Gaussian, frechet_of_rows
from grafting_core.metrics.moments import Moments
from grafting_core.sampling import sample_images, sample_labels
from grafting_core.spec.ladder import LOSS_DRAWS, FidRung, ladder_of
from grafting_core.spec.plans import EvaluationProtocol

FID_CHUNK = 500
Keep = Callable[[int, npt.NDArray[np.uint8]], None]
"""Takes uint8 images [n, H, W] of samples first .. first + n."""


@dataclass(frozen=True)
class EvaluatedChunk:
    """Features float32 [n, F], asked and recognised labels [n] of samples first .. first + n."""

    first: int
    features: npt.NDArray[np.float32]
    asked: npt.NDArray[np.int64]
    recognised: npt.NDArray[np.int64]


def evaluate_chunk(
    backbone: Backbone,
    transformer: nn.Module,
    protocol: EvaluationProtocol,
    first: int,
    count: int,
    keep: Keep = lambda first, images: None,
) -> EvaluatedChunk:
    """Sample indices first .. first + count, let them be kept, look at them with the feature network."""
    indices = range(first, first + count)
    images = sample_images(backbone, transformer, protocol, indices)
    keep(first, images.numpy())
    features, logits = extract_features(backbone, images, protocol.micro_batch)
    asked = sample_labels(protocol, backbone.card.num_classes, indices)
    return EvaluatedChunk(first, features.numpy(), asked.numpy(), logits.argmax(1).numpy())


@torch.no_grad()
def extract_features(backbone: Backbone, images_NHW: Tensor, micro_batch: int) -> tuple[Tensor, Tensor]:
    """Features [N, F] and logits [N, classes] of uint8 images, on the CPU, at a fixed batch shape."""
    features, logits = [], []
    for chunk in images_NHW.split(micro_batch):
        padded = torch.cat([chunk, chunk[-1:].expand(micro_batch - len(chunk), *chunk.shape[1:])])
        pixels = padded.to(backbone.device).float().div(127.5).sub(1).unsqueeze(1)
        found = backbone.features.features(pixels)
        features.append(found[: len(chunk)].cpu())
        logits.append(backbone.features.head(found)[: len(chunk)].cpu())
    return torch.cat(features), torch.cat(logits)


def finish(
    chunks: Iterable[EvaluatedChunk], reference: Moments, protocol: EvaluationProtocol
) -> dict[str, float]:
    """FID on every rung of the ladder, and the share of samples recognised as the class that was asked for.

    Raises ValueError unless the chunks cover samples 0 .. protocol.samples exactly once.
    """
    ordered = sorted(chunks, key=lambda chunk: chunk.first)
    _check_cover(ordered, protocol.samples)
    features = np.concatenate([chunk.features for chunk in ordered])
    hits = np.concatenate([chunk.asked == chunk.recognised for chunk in ordered])
    gaussian = Gaussian.of(reference)
    rungs = [rung for rung in ladder_of(protocol).rungs if isinstance(rung, FidRung)]
    return {
        **{rung.metric: frechet_of_rows(gaussian, features[: rung.samples]) for rung in rungs},
        f"label_accuracy/{protocol.feature_network}": float(hits.mean()),
    }


def fid_at(backbone: Backbone, transformer: nn.Module, protocol: EvaluationProtocol, samples: int) -> float:
    """FID of the protocol's first `samples` samples, on this process alone: a rung of the fidelity ladder.

    The same number that a whole evaluation under the protocol reports for this rung.
    """
    starts = range(0, samples, FID_CHUNK)
    sizes = [min(FID_CHUNK, samples - first) for first in starts]
    chunks = [
        evaluate_chunk(backbone, transformer, protocol, first, size)
        for first, size in zip(starts, sizes, strict=True)
    ]
    features = np.concatenate([chunk.features for chunk in chunks])
    return frechet_of_rows(Gaussian.of(backbone.reference), features)


def _check_cover(ordered: list[EvaluatedChunk], samples: int) -> None:
    expected = 0
    for chunk in ordered:
        if chunk.first != expected:
            raise ValueError(
                f"samples {min(expected, chunk.first)} to {max(expected, chunk.first)} do not line up"
            )
        expected += len(chunk.features)
    if expected != samples:
        raise ValueError(f"{expected} samples were evaluated where the protocol asks for {samples}")


def loss_gap(
    transformer: nn.Module, teacher: nn.Module, latents: Latents, draws: int = LOSS_DRAWS, seed: int = 0
) -> float:
    """Denoising loss above the teacher's on the same images, noise and timesteps; 0 for the teacher."""
    ours, theirs = (denoising_loss_of(network, latents, draws, seed) for network in (transformer, teacher))
    return ours - theirs


@torch.no_grad()
def denoising_loss_of(
    transformer: nn.Module, latents: Latents, draws: int = LOSS_DRAWS, seed: int = 0
) -> float:
    """Mean denoising loss on fixed noise that no training stage draws: seconds to compute, no sampling."""
    device, total, size = next(transformer.parameters()).device, 0.0, 64
    for index in range(0, draws, size):
        batch = latents.batch("loss-gap", seed, index, size).to(device)
        schedule = linear_schedule()
        noisy = add_noise(schedule, batch.clean, batch.noise, batch.timesteps)
        output = transformer(noisy, timestep=batch.timesteps, class_labels=batch.labels).sample
        total += denoising_loss(schedule, output, batch.clean, batch.noise, batch.timesteps).sum().item()
    return total / (len(range(0, draws, size)) * size)
