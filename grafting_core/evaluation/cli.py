"""Judge a model or samples of any project: `python -m grafting_core.evaluation.cli REQUEST`, one JSON answer.

The request is a document of `spec.judging`. Exit code 2, and `{"refused": ...}`, for what cannot be judged.
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
from grafting_core.data.image_sets import ImageSet, open_images, reported
from grafting_core.data.npz import NpzFile
from grafting_core.evaluation.evaluate import (
    EvaluatedChunk,
    digest_of_hashes,
    evaluate_chunk,
    feature_network_for,
    finish,
    hashes_of,
    recognises,
    training_reference,
    versions,
)
from grafting_core.evaluation.features.base import FeatureNetwork, extract, joined
from grafting_core.evaluation.features.table import load_network
from grafting_core.evaluation.metrics.report import measure
from grafting_core.evaluation.reference import Reference, load_reference, make_reference, read_own
from grafting_core.specs.backbone import backbone_cards
from grafting_core.specs.design import GraftDesign
from grafting_core.specs.experiment import RECIPE_VERSIONS, own_fingerprint
from grafting_core.specs.requests import (
    REQUEST,
    EvaluateRequest,
    ReferenceRequest,
    ReferenceView,
    ShowRequest,
)
from grafting_core.specs.results import EvaluationReport, ProtocolFingerprint
from grafting_core.storage.artifacts import CARD, READ_ERRORS, CorruptArtifact, read_published
from grafting_core.storage.storage import Storage
from grafting_core.surgery.operate import operate

Model = tuple[Backbone, nn.Module]


def judge(request: EvaluateRequest) -> EvaluationReport:
    """Raises ValueError (BadFile among them) for what cannot be judged, before anything is sampled."""
    model = load_model(request.subject)
    if model is None:
        return _judge_images(request, open_images(Path(request.subject)))
    return _judge_model(request, *model)


def load_model(subject: str) -> Model | None:
    """Backbone and network of a name, a published graft or a diffusers folder; None for anything else."""
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
    """A run's model, verified against its card."""
    try:
        weights = load(read_published(Storage(str(folder.parent)), folder.name))
        design = GraftDesign.model_validate_json(
            json.dumps(json.loads((folder / CARD).read_text())["design"])
        )
    except (CorruptArtifact, *READ_ERRORS) as error:
        raise ValueError(f"{folder} holds no published model: {str(error)[:300]}") from error
    backbone = load_backbone(design.backbone.name, _device())
    if backbone.card.digest != design.backbone.digest:
        raise ValueError(f"{folder} was grafted onto other weights of {design.backbone.name}")
    # A copy, as in the run itself: where weights lie in memory changes the low bits of a product.
    network = copy.deepcopy(backbone.transformer)
    operate(backbone.with_transformer(network), design.edits, pairs=design.pairs)
    network.load_state_dict(weights)
    return backbone, network.eval().requires_grad_(False)


def _judge_model(request: EvaluateRequest, backbone: Backbone, network: nn.Module) -> EvaluationReport:
    protocol = request.protocol
    feature_network = _feature_network(request, backbone)
    dims = _check_size(feature_network, backbone.image_size)
    reference = _fitting(_reference(request, feature_network, backbone), dims)
    fingerprint = own_fingerprint(backbone.card.digest, protocol)
    if request.reference is not None or request.source is not None:
        fingerprint = fingerprint.model_copy(
            update={"feature_network": feature_network.digest, "reference": reference.digest}
        )
    chunks = [*_chunks(request, backbone, network, feature_network)]
    return finish(chunks, reference, fingerprint, recognises(backbone, feature_network))


def _check_size(feature_network: FeatureNetwork, size: tuple[int, int]) -> int:
    """How many features the network gives of such images. Raises ValueError where it takes others alone."""
    features = extract(feature_network, np.zeros((1, *size, 3), np.uint8), 1)
    return int(features.pool.shape[1])


def _fitting(reference: Reference, dims: int) -> Reference:
    """Raises ValueError, before anything is sampled, for a reference of another network."""
    if reference.pool.dims != dims:
        name = reference.card.feature_network
        raise ValueError(f"{reference.card.name} is of {reference.pool.dims} features; {name} gives {dims}")
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
    """What the request names, or the backbone's own images."""
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
    if backbone is None or backbone.card.dataset is None:
        raise ValueError(f"{request.subject} brings no reference of its own; name one with --reference")
    return training_reference(backbone.card, feature_network)


def _judge_images(request: EvaluateRequest, images: ImageSet) -> EvaluationReport:
    """Every image of the set, under the name of its count; how they were sampled, nobody can tell."""
    protocol = request.protocol.model_copy(update={"samples": images.count})
    feature_network = load_network(protocol.feature_network, _device(), request.source)
    dims = _check_size(feature_network, images.size)
    reference = _fitting(_reference(request, feature_network, None), dims)
    parts, hashes = [], []
    for batch in reported(images, protocol.micro_batch):
        parts.append(extract(feature_network, batch, protocol.micro_batch))
        hashes.append(hashes_of(batch))
    figures = measure(reference, joined(parts), protocol)
    return EvaluationReport(
        fingerprint=ProtocolFingerprint(
            recipe=RECIPE_VERSIONS["evaluate"],
            subject="",
            protocol=protocol,
            feature_network=feature_network.digest,
            reference=reference.digest,
        ),
        values=figures.values,
        intervals=figures.intervals,
        warnings=(*figures.warnings, *images.notes),
        samples_digest=digest_of_hashes(np.concatenate(hashes)),
        made_with=versions(),
    )


def make(request: ReferenceRequest) -> ReferenceView:
    """Write the reference; the file is whole or not there."""
    feature_network = load_network(request.feature_network, _device(), request.source)
    made = make_reference(open_images(Path(request.images)), feature_network)
    output = Path(request.output)
    Storage(str(output.resolve().parent)).write_bytes(output.name, made.packed())
    return show(ShowRequest(file=request.output)).model_copy(update={"notes": made.notes})


def show(request: ShowRequest) -> ReferenceView:
    """Sizes and origin; of a file of ours the digest that fingerprints hold, which takes its arrays."""
    path = Path(request.file)
    with NpzFile(path) as arrays:
        sizes = {name: arrays.member(name).shape for name in arrays.names}
        own = read_own(arrays) if "card" in sizes else None
    if "mu" not in sizes:
        raise ValueError(f"{path} holds no statistics ('mu'); `graft reference make` makes some of images")
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


ANSWERS: Mapping[str, Callable[[Any], BaseModel]] = {"evaluate": judge, "make": make, "show": show}


def main() -> int:
    """The answer, or why there is none, as one JSON document."""
    request = REQUEST.validate_json(sys.argv[1])
    try:
        answer = ANSWERS[request.kind](request)
    except (ValueError, OSError) as error:
        lines = (" ".join(line.split()) for line in str(error).splitlines())
        print(json.dumps({"refused": "\n".join(lines)}))
        return 2
    print(answer.model_dump_json())
    return 0


if __name__ == "__main__":
    sys.exit(main())
