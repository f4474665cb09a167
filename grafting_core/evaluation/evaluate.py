"""Stage 3: sample, extract features, compute metrics."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from grafting_core.backbones.base import Backbone
from grafting_core.data.datasets import Dataset, FeatureStatistics, dataset_of
from grafting_core.data.images import Images
from grafting_core.data.latents import Latents, predict_batch
from grafting_core.diffusion.sampling import sample_images, sample_labels
from grafting_core.evaluation.features.base import FeatureNetwork, Features, concat, extract
from grafting_core.evaluation.features.table import load_network
from grafting_core.evaluation.metrics.frechet import Gaussian, frechet_of_rows
from grafting_core.evaluation.metrics.intervals import label_interval
from grafting_core.evaluation.metrics.moments import Moments, finite_rows
from grafting_core.evaluation.metrics.report import by_class, compute_metrics
from grafting_core.evaluation.reference import Labels, Reference, make_reference
from grafting_core.specs.backbone import BackboneCard
from grafting_core.specs.datasets import DatasetRef
from grafting_core.specs.experiment import own_fingerprint
from grafting_core.specs.features import FEATURE_NETWORKS
from grafting_core.specs.plans import EvaluationProtocol
from grafting_core.specs.results import EvaluationReport, ProtocolFingerprint
from grafting_core.specs.rungs import LOSS_DRAWS

CHUNK = 500
_REFERENCES: dict[tuple[str, str, str], Reference] = {}
NO_LABEL = -1
"""Target of a sample that was generated without a label."""
Keep = Callable[[int, Images], None]
"""Receives the index of the first sample and the images of samples first .. first + n."""
REPORTED = ("graftlab", "torch", "numpy", "diffusers")


@dataclass(frozen=True)
class EvaluatedChunk:
    """Features, target labels [n] and SHA-256 [n, 32] of the images of samples first .. first + n.

    Labels of samples of a backbone without classes are NO_LABEL.
    """

    first: int
    features: Features
    targets: Labels
    hashes: npt.NDArray[np.uint8]


def feature_network_for(backbone: Backbone, protocol: EvaluationProtocol) -> FeatureNetwork:
    """The protocol's feature network on the backbone's device. Raises ValueError without its weights."""
    network = load_network(protocol.feature_network, backbone.device)
    if protocol.feature_digest not in (None, network.digest):
        raise ValueError(
            f"{network.name} has digest {network.digest}; the protocol requires {protocol.feature_digest}"
        )
    return network


def recognises(backbone: Backbone, network: FeatureNetwork, dataset: DatasetRef | None = None) -> bool:
    """Whether the network's logits are the target classes, in the same order.

    These are the classes of `dataset`, by default the backbone's own. False for a backbone without classes.
    """
    card, kind = backbone.card, FEATURE_NETWORKS.entries.get(network.name)
    if kind is None or not kind.names_classes or not card.num_classes:
        return False
    if kind.card is None:
        return network.name == card.feature_network and dataset is None
    trained_on = kind.card.dataset
    return trained_on is not None and trained_on.digest == dataset_of(card, dataset).digest


def training_reference(
    card: BackboneCard, network: FeatureNetwork, dataset: DatasetRef | None = None
) -> Reference:
    """Reference of a data set, by default the backbone's, with statistics of the whole set if published.

    Computed once per process. Raises ValueError for a backbone without a data set.
    """
    return dataset_reference(dataset_of(card, dataset), network, dataset.name if dataset else card.name)


def dataset_reference(dataset: Dataset, network: FeatureNetwork, name: str) -> Reference:
    """Reference of a loaded data set, displayed under `name`. Computed once per process."""
    key = (name, dataset.digest, network.digest)
    if key not in _REFERENCES:
        _REFERENCES[key] = _make_reference(dataset, network, name)
    return _REFERENCES[key]


def _make_reference(dataset: Dataset, network: FeatureNetwork, name: str) -> Reference:
    images, labels = dataset.reference_images(name)
    made = make_reference(images, network, labels)
    whole = dataset.statistics.get(network.name)
    if whole is None:
        return made
    known = made.card.model_copy(update={"images": whole.count})
    return Reference(known, _gaussian(whole), made.spatial, made.rows, made.labels)


def _gaussian(whole: FeatureStatistics) -> Gaussian:
    return Gaussian.of(Moments(whole.count, whole.mean, whole.scatter))


def evaluate(graft: Backbone, protocol: EvaluationProtocol) -> EvaluationReport:
    """Sample the graft and compute every metric against the protocol's reference, in this process.

    The report equals that of a lab for the same weights. Raises ValueError without the network's weights, or
    for a backbone without a data set.
    """
    network = feature_network_for(graft, protocol)
    chunks = [
        evaluate_chunk(graft, graft.transformer, protocol, *span, network=network)
        for span in _spans(protocol.samples, protocol.micro_batch)
    ]
    fingerprint = own_fingerprint(graft.card.digest, protocol)
    reference = training_reference(graft.card, network, protocol.dataset)
    return compute_report(chunks, reference, fingerprint, recognises(graft, network, protocol.dataset))


def _spans(samples: int, micro_batch: int) -> list[tuple[int, int]]:
    """First index and count of chunks of about CHUNK samples, each of whole micro-batches but the last."""
    size = micro_batch * max(1, CHUNK // micro_batch)
    return [(first, min(size, samples - first)) for first in range(0, samples, size)]


def evaluate_chunk(
    backbone: Backbone,
    transformer: nn.Module,
    protocol: EvaluationProtocol,
    first: int,
    count: int,
    keep: Keep = lambda first, images: None,
    network: FeatureNetwork | None = None,
) -> EvaluatedChunk:
    """Sample indices first .. first + count, pass the images to `keep`, and extract their features.

    `first` is a multiple of the micro-batch, so that every image has the same row in its forward.
    """
    indices = range(first, first + count)
    images = sample_images(backbone, transformer, protocol, indices).numpy()
    keep(first, images)
    features = extract(network or feature_network_for(backbone, protocol), images, protocol.micro_batch)
    return EvaluatedChunk(first, features, _targets(backbone, protocol, indices), hashes_of(images))


def _targets(backbone: Backbone, protocol: EvaluationProtocol, indices: Sequence[int]) -> Labels:
    classes = backbone.card.num_classes
    if not classes:
        return np.full(len(indices), NO_LABEL)
    labels: Labels = sample_labels(protocol, classes, indices).numpy()
    return labels


def hashes_of(images: Images) -> npt.NDArray[np.uint8]:
    """SHA-256 [N, 32] of every image."""
    digests = [hashlib.sha256(np.ascontiguousarray(image).tobytes()).digest() for image in images]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(len(images), 32)


def compute_report(
    chunks: Iterable[EvaluatedChunk],
    reference: Reference,
    fingerprint: ProtocolFingerprint,
    recognises: bool = True,
) -> EvaluationReport:
    """Compute all metrics of a complete set of samples, independent of how it was split into chunks.

    If the network `recognises` the backbone's classes, its predictions are compared with the target labels.
    Raises ValueError unless the chunks are samples 0 .. protocol.samples, each once, and for samples whose
    features are not finite, with their indices.
    """
    protocol = fingerprint.protocol
    ordered = sorted(chunks, key=lambda chunk: chunk.first)
    _check_cover(ordered, protocol.samples)
    features = concat(chunk.features for chunk in ordered)
    finite_rows(features.pool)
    targets = np.concatenate([chunk.targets for chunk in ordered])
    predicted = features.logits.argmax(1) if recognises and features.logits is not None else None
    metrics = compute_metrics(reference, features, protocol)
    if predicted is not None:
        right = targets == predicted
        metrics.add(f"label_accuracy/{protocol.feature_network}", float(right.mean()), label_interval(right))
    elif features.logits is not None and (targets != NO_LABEL).any():
        metrics.warnings.append(
            f"no label_accuracy: the classes of {protocol.feature_network} are not the backbone's"
        )
    return EvaluationReport(
        fingerprint=fingerprint,
        values=metrics.values,
        intervals=metrics.intervals,
        warnings=tuple(metrics.warnings),
        classes=by_class(reference, features, targets, predicted),
        samples_digest=digest_of_hashes(np.concatenate([chunk.hashes for chunk in ordered])),
        made_with=versions(),
    )


def digest_of_hashes(hashes: npt.NDArray[np.uint8]) -> str:
    """SHA-256 over the SHA-256 [N, 32] of the images in order."""
    return hashlib.sha256(hashes.tobytes()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of the software that computes metrics."""
    return {name: version(name) for name in REPORTED}


def _check_cover(ordered: list[EvaluatedChunk], samples: int) -> None:
    expected = 0
    for chunk in ordered:
        if chunk.first != expected:
            raise ValueError(
                f"samples {min(expected, chunk.first)}..{max(expected, chunk.first)} are missing or repeated"
            )
        expected += len(chunk.features)
    if expected != samples:
        raise ValueError(f"{expected} samples were evaluated; the protocol requires {samples}")


def fid_at(
    backbone: Backbone,
    transformer: nn.Module,
    protocol: EvaluationProtocol,
    samples: int,
    reference: Reference | None = None,
) -> float:
    """FID of the protocol's first `samples` samples, in this process: a rung of the fidelity ladder.

    Equals the value that a whole evaluation under the protocol reports for this rung. `reference` is needed
    only if it is not the one of the backbone's training images.
    """
    network = feature_network_for(backbone, protocol)
    spans = _spans(samples, protocol.micro_batch)
    chunks = [
        evaluate_chunk(backbone, transformer, protocol, *span, network=network).features for span in spans
    ]
    if reference is not None:
        return frechet_of_rows(reference.pool, concat(chunks).pool)
    whole = dataset_of(backbone.card, protocol.dataset).statistics.get(network.name)
    pool = _gaussian(whole) if whole else training_reference(backbone.card, network, protocol.dataset).pool
    return frechet_of_rows(pool, concat(chunks).pool)


@torch.no_grad()
def denoising_loss_of(backbone: Backbone, latents: Latents, draws: int = LOSS_DRAWS, seed: int = 0) -> float:
    """Mean training loss on fixed noise that no training stage uses; takes seconds, without sampling."""
    objective, total, size = latents.objective, 0.0, 64
    for index in range(0, draws, size):
        batch = latents.batch("loss-gap", seed, index, size).to(backbone.device)
        output = predict_batch(backbone, batch)
        total += objective.loss(output, batch.clean, batch.noise, batch.timesteps).sum().item()
    return total / (len(range(0, draws, size)) * size)
