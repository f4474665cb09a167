"""Metrics on the card: distance of the teacher from real images, with lower and upper reference values.

`python -m grafting_core.testbed.recipe.measure` measures the shipped files and writes the metrics to
their card.
"""

from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import nn

from grafting_core.analysis.locality import locality_profile, profile_protocol
from grafting_core.backbones.base import Backbone
from grafting_core.backbones.registry import load_backbone
from grafting_core.evaluation.evaluate import (
    compute_report,
    evaluate_chunk,
    feature_network_for,
    training_reference,
)
from grafting_core.evaluation.metrics.frechet import fid
from grafting_core.evaluation.metrics.moments import Moments
from grafting_core.specs.experiment import own_fingerprint
from grafting_core.specs.plans import EvaluationProtocol
from grafting_core.specs.profile import default_band
from grafting_core.testbed.assets import load_autoencoder, load_classifier, load_reference
from grafting_core.testbed.networks import build_transformer
from grafting_core.testbed.recipe.classifier import accuracy
from grafting_core.testbed.recipe.data import Bytes, read_split, to_images, to_pixels
from grafting_core.testbed.recipe.package import NAME, feature_moments, write_card

PROTOCOL = EvaluationProtocol(
    samples=10_000,
    sampler="ddim",
    sampling_steps=10,
    guidance=1.5,
    guidance_channels="all",
    labels="balanced",
    feature_network="fashion-cnn",
    micro_batch=50,
)
CHUNK = 500
SHOWN = (PROTOCOL.fid_name, f"label_accuracy/{PROTOCOL.feature_network}")


def measure_real() -> dict[str, float]:
    """Metrics of real images, of reconstructions, and the classifier's accuracy, on the test images."""
    images, _ = read_split("t10k")
    classifier, whole = load_classifier(), load_reference()
    known = Moments(whole.count, whole.mean, whole.scatter)
    restored = reconstruct(load_autoencoder(), images)
    return {
        "classifier_test_accuracy": accuracy(classifier),
        "fid10k/fashion-cnn real test images": fid(known, feature_moments(classifier, images)),
        "fid10k/fashion-cnn reconstructions": fid(known, feature_moments(classifier, restored)),
    }


@torch.no_grad()
def reconstruct(autoencoder: AutoencoderKL, images: Bytes) -> Bytes:
    """Images encoded to the posterior mean and decoded again."""
    parts = []
    for start in range(0, len(images), CHUNK):
        latents = autoencoder.encode(to_pixels(images[start : start + CHUNK])).latent_dist.mean
        parts.append(torch.from_numpy(to_images(autoencoder.decode(latents).sample)))
    restored: Bytes = torch.cat(parts).numpy()
    return restored


def measure_samples(backbone: Backbone, transformer: nn.Module, name: str) -> dict[str, float]:
    """FID of 10,000 samples with guidance 1.5 (see `PROTOCOL`)."""
    chunks = []
    for first in range(0, PROTOCOL.samples, CHUNK):
        chunks.append(evaluate_chunk(backbone, transformer, PROTOCOL, first, CHUNK))
        print(f"{name}: {first + CHUNK}/{PROTOCOL.samples}", flush=True)
    reference = training_reference(backbone.card, feature_network_for(backbone, PROTOCOL))
    report = compute_report(chunks, reference, own_fingerprint(backbone.card.digest, PROTOCOL))
    return {f"{metric} {name}": report.values[metric] for metric in SHOWN}


def untrained(seed: int = 0) -> nn.Module:
    """The teacher's architecture with diffusers' initial weights, whose FID is the upper reference value."""
    torch.manual_seed(seed)
    network: nn.Module = build_transformer().eval().requires_grad_(False)
    return network


def measure_locality(backbone: Backbone) -> dict[str, Any]:
    """Locality profile for the card, by which designs select blocks."""
    band = default_band(backbone.card.dims.num_tokens)
    profile = locality_profile(backbone, [band], profile_protocol())[band]
    return {"locality_band": band, "locality": tuple(round(mass, 6) for mass in profile)}


def main() -> None:
    """Measure everything (20 minutes of one core) and rewrite the card."""
    backbone = load_backbone(NAME)
    figures = measure_real()
    figures |= measure_samples(backbone, backbone.transformer, "teacher")
    figures |= measure_samples(backbone, untrained(), "untrained")
    measured = {"figures": figures, **measure_locality(backbone)}
    write_card(backbone.card.model_copy(update=measured))
    for name, value in figures.items():
        print(f"{name}: {value:.4f}")


if __name__ == "__main__":
    main()
