"""Metrics of held-out real images under a protocol: what a perfect model of the data would reach."""

from collections.abc import Iterator

import numpy as np

from grafting_core.data.datasets import Dataset, LabelledSet
from grafting_core.data.images import Images
from grafting_core.data.subsets import stratified
from grafting_core.evaluation.evaluate import (
    CHUNK,
    NO_LABEL,
    dataset_reference,
    digest_of_hashes,
    hashes_of,
    versions,
)
from grafting_core.evaluation.features.base import FeatureNetwork, concat, extract
from grafting_core.evaluation.metrics.intervals import label_interval
from grafting_core.evaluation.metrics.report import by_class, compute_metrics
from grafting_core.evaluation.reference import Labels, Reference
from grafting_core.specs.experiment import RECIPE_VERSIONS
from grafting_core.specs.plans import EvaluationProtocol
from grafting_core.specs.results import EvaluationReport, ProtocolFingerprint

FEWEST = 2


def oracle_report(
    dataset: Dataset,
    network: FeatureNetwork,
    protocol: EvaluationProtocol,
    recognises: bool = False,
    reference: Reference | None = None,
) -> EvaluationReport:
    """Metrics of as many held-out images as the protocol has samples, or of all if there are fewer.

    Their names contain the number of images used, and only metrics of equal names are comparable with those
    of samples. If the network `recognises` the data set's classes, its accuracy is included. `reference` is
    computed if it is not given. Raises ValueError if the data set has no held-out images.
    """
    held_out = dataset.held_out_reference(dataset.name)
    if held_out is None or held_out[0].count < FEWEST:
        raise ValueError(f"data set {dataset.name!r} has no held-out images to compare with its reference")
    chosen, labels = _chosen(held_out, protocol.samples)
    counted = protocol.model_copy(update={"samples": len(chosen)})
    parts, hashes = [], []
    for batch in _batches(held_out, chosen):
        parts.append(extract(network, batch, protocol.micro_batch))
        hashes.append(hashes_of(batch))
    features = concat(parts)
    reference = reference or dataset_reference(dataset, network, dataset.name)
    metrics = compute_metrics(reference, features, counted)
    predicted = features.logits.argmax(1) if recognises and features.logits is not None else None
    if predicted is not None:
        right = labels == predicted
        metrics.add(f"label_accuracy/{protocol.feature_network}", float(right.mean()), label_interval(right))
    return EvaluationReport(
        fingerprint=ProtocolFingerprint(
            recipe=RECIPE_VERSIONS["evaluate"],
            subject="",
            protocol=counted,
            feature_network=network.digest,
            reference=reference.digest,
        ),
        values=metrics.values,
        intervals=metrics.intervals,
        warnings=tuple(metrics.warnings),
        classes=by_class(reference, features, labels, predicted),
        samples_digest=digest_of_hashes(np.concatenate(hashes)),
        made_with=versions(),
    )


def _chosen(held_out: LabelledSet, samples: int) -> tuple[Labels, Labels]:
    """Indices of the images used, in the proportions of the classes, and their labels."""
    images, labels = held_out
    known = np.full(images.count, NO_LABEL) if labels is None else labels
    chosen = stratified(known, samples, seed=0)
    return chosen, known[chosen]


def _batches(held_out: LabelledSet, chosen: Labels) -> Iterator[Images]:
    for first in range(0, len(chosen), CHUNK):
        yield held_out[0].rows(chosen[first : first + CHUNK])
