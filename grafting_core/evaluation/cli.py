"""Evaluate a model or samples of any project: `python -m grafting_core.evaluation.cli REQUEST`.

REQUEST is JSON of `specs.requests`; prints one JSON document. Exit code 2 and `{"refused": ...}`: bad input.
"""

import copy
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from safetensors.torch import load
from torch import nn

from grafting_core.backbones.base import Backbone
from grafting_core.backbones.diffusers_folder import is_diffusers_folder, load_folder
from grafting_core.backbones.registry import load_backbone
from grafting_core.backbones.shared_embedders import load_unique_state
from grafting_core.data.image_sets import ImageSet, open_images, reported
from grafting_core.data.npz import NpzFile
from grafting_core.evaluation.evaluate import (
    EvaluatedChunk,
    compute_report,
    digest_of_hashes,
    evaluate_chunk,
    feature_network_for,
    hashes_of,
    recognises,
    training_reference,
    versions,
)
from grafting_core.evaluation.features.base import FeatureNetwork, concat, extract
from grafting_core.evaluation.features.image_models import read_feature_folder
from grafting_core.evaluation.features.table import load_network
from grafting_core.evaluation.metrics.report import compute_metrics
from grafting_core.evaluation.reference import Reference, load_reference, make_reference, read_own
from grafting_core.specs.backbone import backbone_cards
from grafting_core.specs.design import GraftDesign
from grafting_core.specs.experiment import RECIPE_VERSIONS, own_fingerprint
from grafting_core.specs.features import (
    FEATURE_NETWORKS,
    FeatureSource,
    digest_of_path,
    register_features,
)
from grafting_core.specs.requests import (
    REQUEST,
    EvaluateRequest,
    ReferenceRequest,
    ReferenceView,
    ShowRequest,
)
from grafting_core.specs.results import EvaluationReport, ProtocolFingerprint
from grafting_core.specs.sampling_rules import check_protocol, protocol_for
from grafting_core.storage.artifacts import CARD, READ_ERRORS, CorruptArtifact, read_published
from grafting_core.storage.storage import Storage
from grafting_core.surgery.operate import operate

Model = tuple[Backbone, nn.Module]


def evaluate(request: EvaluateRequest) -> EvaluationReport:
    """Evaluate a model or images. Raises ValueError (BadFile included) for bad input, before sampling."""
    _know_network(request.protocol.feature_network, request.source)
    model = load_model(request.subject)
    if model is None:
        return _evaluate_images(request, open_images(Path(request.subject)))
    return _evaluate_model(request, *model)


def load_model(subject: str) -> Model | None:
    """Backbone and network of a name, a published graft or a diffusers folder; None for other subjects."""
    if subject in backbone_cards():
        backbone = load_backbone(subject, _device())
        return backbone, backbone.transformer
    folder = Path(subject)
    if is_diffusers_folder(folder):
        backbone = load_folder(folder, _device())
        return backbone, backbone.transformer
    return _published(folder) if (folder / CARD).is_file() else None


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _published(folder: Path) -> Model:
    """Model that a run published, verified against its card."""
    try:
        weights = load(read_published(Storage(str(folder.parent)), folder.name))
        design = GraftDesign.model_validate_json(
            json.dumps(json.loads((folder / CARD).read_text())["design"])
        )
    except (CorruptArtifact, *READ_ERRORS) as error:
        raise ValueError(f"{folder} holds no published model: {str(error)[:300]}") from error
    backbone = load_backbone(design.backbone.name, _device())
    if backbone.card.digest != design.backbone.digest:
        raise ValueError(f"{folder} was grafted onto {design.backbone.name} with different weights")
    # A copy, as in the run itself: the memory layout of weights changes the low bits of a product.
    network = copy.deepcopy(backbone.transformer)
    operate(backbone.with_transformer(network), design)
    load_unique_state(network, weights)
    return backbone, network.eval().requires_grad_(False)


def _know_network(name: str, source: FeatureSource | None) -> None:
    """Make a lab's own network known, whose folder a request gives as weights.

    Raises ValueError for a folder without an image model, or with another digest.
    """
    if name in FEATURE_NETWORKS or source is None:
        return
    if not Path(source.path).is_dir():
        raise ValueError(f"{name} is no network of a package, so its weights are the folder of one")
    found = digest_of_path(Path(source.path))
    if found != source.sha256:
        raise ValueError(f"{name}: {source.path} has SHA-256 {found}, not {source.sha256}; it was not loaded")
    register_features([read_feature_folder(Path(source.path), name)])


def _evaluate_model(request: EvaluateRequest, backbone: Backbone, network: nn.Module) -> EvaluationReport:
    if request.is_preset:
        fitted = protocol_for(backbone.card, request.protocol, ())
        request = request.model_copy(update={"protocol": fitted})
    protocol = request.protocol
    check_protocol(backbone.card, protocol)
    feature_network = _feature_network(request, backbone)
    dims = _check_size(feature_network, backbone.image_size)
    reference = _fitting(_reference(request, feature_network, backbone), dims)
    fingerprint = own_fingerprint(backbone.card.digest, protocol)
    if request.reference is not None or request.source is not None:
        fingerprint = fingerprint.model_copy(
            update={"feature_network": feature_network.digest, "reference": reference.digest}
        )
    chunks = [*_chunks(request, backbone, network, feature_network)]
    known = recognises(backbone, feature_network, protocol.dataset)
    return compute_report(chunks, reference, fingerprint, known)


def _check_size(feature_network: FeatureNetwork, size: tuple[int, int]) -> int:
    """Number of features for images of this size. Raises ValueError if the network cannot take them."""
    features = extract(feature_network, np.zeros((1, *size, 3), np.uint8), 1)
    return int(features.pool.shape[1])


def _fitting(reference: Reference, dims: int) -> Reference:
    """The reference, unchanged. Raises ValueError, before sampling, if it is of another network."""
    if reference.pool.dims != dims:
        name = reference.card.feature_network
        raise ValueError(f"{reference.card.name} has {reference.pool.dims} features, but {name} has {dims}")
    return reference


def _feature_network(request: EvaluateRequest, backbone: Backbone) -> FeatureNetwork:
    if request.source is not None:
        return load_network(request.protocol.feature_network, backbone.device, request.source)
    return feature_network_for(backbone, request.protocol)


def _chunks(
    request: EvaluateRequest, backbone: Backbone, network: nn.Module, feature_network: FeatureNetwork
) -> Iterator[EvaluatedChunk]:
    protocol = request.protocol
    size = 2 * protocol.micro_batch
    for first in range(0, protocol.samples, size):
        count = min(size, protocol.samples - first)
        yield evaluate_chunk(backbone, network, protocol, first, count, network=feature_network)
        print(f"sampled {first + count} of {protocol.samples}", file=sys.stderr)


def _reference(
    request: EvaluateRequest, feature_network: FeatureNetwork, backbone: Backbone | None
) -> Reference:
    """The reference that the request names, or the backbone's training images."""
    named = request.reference
    if named in backbone_cards():
        return training_reference(backbone_cards()[str(named)], feature_network)
    if named is not None:
        path = Path(named)
        return (
            make_reference(open_images(path), feature_network)
            if path.is_dir()
            else load_reference(path, feature_network)
        )
    dataset = request.protocol.dataset
    if backbone is None or (backbone.card.dataset is None and dataset is None):
        raise ValueError(f"{request.subject} has no reference of its own; name one with --reference")
    return training_reference(backbone.card, feature_network, dataset)


def _evaluate_images(request: EvaluateRequest, images: ImageSet) -> EvaluationReport:
    """Evaluate every image of the set; the sample count is theirs, and how they were sampled is unknown."""
    protocol = request.protocol.model_copy(update={"samples": images.count})
    feature_network = load_network(protocol.feature_network, _device(), request.source)
    dims = _check_size(feature_network, images.size)
    reference = _fitting(_reference(request, feature_network, None), dims)
    parts, hashes = [], []
    for batch in reported(images, protocol.micro_batch):
        parts.append(extract(feature_network, batch, protocol.micro_batch))
        hashes.append(hashes_of(batch))
    metrics = compute_metrics(reference, concat(parts), protocol)
    return EvaluationReport(
        fingerprint=ProtocolFingerprint(
            recipe=RECIPE_VERSIONS["evaluate"],
            subject="",
            protocol=protocol,
            feature_network=feature_network.digest,
            reference=reference.digest,
        ),
        values=metrics.values,
        intervals=metrics.intervals,
        warnings=(*metrics.warnings, *images.notes),
        samples_digest=digest_of_hashes(np.concatenate(hashes)),
        made_with=versions(),
    )


def write_reference(request: ReferenceRequest) -> ReferenceView:
    """Write the reference atomically and describe it."""
    _know_network(request.feature_network, request.source)
    feature_network = load_network(request.feature_network, _device(), request.source)
    made = make_reference(open_images(Path(request.images)), feature_network)
    output = Path(request.output)
    Storage(str(output.resolve().parent)).write_bytes(output.name, made.packed())
    return describe_reference(ShowRequest(file=request.output)).model_copy(update={"notes": made.notes})


def describe_reference(request: ShowRequest) -> ReferenceView:
    """Describe a reference: sizes and origin; for files with a card also the digest used in fingerprints."""
    path = Path(request.file)
    with NpzFile(path) as arrays:
        sizes = {name: arrays.member(name).shape for name in arrays.names}
        own = read_own(arrays) if "card" in sizes else None
    if "mu" not in sizes:
        raise ValueError(f"{path} has no statistics ('mu'); `graft reference make` computes them from images")
    kept = sizes.get("features") or sizes.get("arr_0")
    return ReferenceView(
        name=own.card.name if own else path.name,
        feature_network=own.card.feature_network if own else None,
        digest=own.digest if own else None,
        statistics_of=own.card.images if own else None,
        dims=sizes["mu"][0],
        spatial_dims=sizes["mu_s"][0] if "mu_s" in sizes else None,
        features_kept=kept[0] if kept else None,
    )


COMMANDS: Mapping[str, Callable[[Any], BaseModel]] = {
    "evaluate": evaluate,
    "make": write_reference,
    "show": describe_reference,
}


def main() -> int:
    """Print the result, or the reason for refusal, as one JSON document; returns the exit code."""
    request = REQUEST.validate_json(sys.argv[1])
    try:
        result = COMMANDS[request.kind](request)
    except (ValueError, OSError) as error:
        lines = (" ".join(line.split()) for line in str(error).splitlines())
        print(json.dumps({"refused": "\n".join(lines)}))
        return 2
    print(result.model_dump_json())
    return 0


if __name__ == "__main__":
    sys.exit(main())
