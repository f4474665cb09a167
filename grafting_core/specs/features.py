"""Table of feature networks, and the weight files that the lab's administrator names for them.

Nothing is ever downloaded. Weights other than the shipped ones are files or folders that the administrator
names, with their SHA-256, in a JSON or YAML file at the path in `GRAFTLAB_FEATURE_NETWORKS`:

    inception: {path: /models/inception-2015-12-05.pth, sha256: 6726825d...}
    dinov2: {path: /models/dinov2-large, sha256: ...}
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from grafting_core.specs.base import Frozen
from grafting_core.specs.datasets import DatasetRef
from grafting_core.specs.plugins import API_VERSION, Entry, PluginTable
from grafting_core.specs.private_names import NetworkName

SETTING = "GRAFTLAB_FEATURE_NETWORKS"
CHUNK_BYTES = 1 << 20
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class FeatureCard(Frozen):
    """Card of a registered network: a classifier trained by `graft features train`, or an image model
    in a folder of transformers or timm.
    """

    name: NetworkName
    digest: Sha256
    """Digest of its files by `digest_of_path`."""
    kind: Literal["classifier", "transformers", "timm"]
    dims: Annotated[int, Field(ge=1)]
    """Number of features per image."""
    spatial: bool = False
    side: int | None = None
    """Side in pixels of the only images that it accepts; None if it resizes."""
    dataset: DatasetRef | None = None
    """Data set with the classes of its logits, in that order; None if there is none."""
    accuracy: Annotated[float, Field(ge=0, le=1)] | None = None
    """Accuracy on the held-out images of that data set."""
    size: Annotated[int, Field(ge=0)] = 0
    """Bytes of all files."""
    licence: str | None = None
    folder: str | None = None
    """Path on this machine; None if only the card is known."""


class FeatureKind(Entry):
    """Table row; `load` names a function (source, device) -> `FeatureNetwork`."""

    weights: Literal["shipped", "file", "folder"]
    spatial: bool
    """Whether it has the spatial features that sFID needs."""
    summary: str
    names_classes: bool = False
    """Whether its logits are the classes of its data set, in that order. Inception's are not: it has 1008
    outputs for ImageNet's thousand classes.
    """
    side: int | None = None
    """Side in pixels of the only images that it accepts; None if it resizes."""
    sha256: Sha256 | None = None
    """Digest of shipped weights; None for those that the administrator names."""
    card: FeatureCard | None = None
    """Card of a network that this lab has registered."""


FEATURE_NETWORKS = PluginTable(
    "feature network",
    "graftlab.feature_networks",
    FeatureKind,
    {
        "inception": FeatureKind(
            api=API_VERSION,
            load="grafting_core.evaluation.features.inception_weights:load_inception",
            weights="file",
            spatial=True,
            summary="Inception of 2015-12-05, the network of published FIDs",
        ),
        "dinov2": FeatureKind(
            api=API_VERSION,
            load="grafting_core.evaluation.features.transformers:load_dinov2",
            weights="folder",
            spatial=True,
            summary="DINOv2 vision transformer, class token",
        ),
        "clip": FeatureKind(
            api=API_VERSION,
            load="grafting_core.evaluation.features.transformers:load_clip",
            weights="folder",
            spatial=False,
            summary="CLIP image tower, projected embedding",
        ),
    },
)


_SOURCES: dict[str, "FeatureSource"] = {}
"""Network name -> source, of registered networks."""


def register_features(cards: Iterable[FeatureCard]) -> None:
    """Make registered networks known to this process, older revisions of a name before newer ones."""
    newest = {card.name: card for card in cards}
    FEATURE_NETWORKS.register({name: _registered(card) for name, card in newest.items()})
    _SOURCES.clear()
    _SOURCES.update(
        {name: FeatureSource(path=card.folder or "", sha256=card.digest) for name, card in newest.items()}
    )


def _registered(card: FeatureCard) -> FeatureKind:
    return FeatureKind(
        api=API_VERSION,
        load=LOADERS[card.kind],
        weights="folder",
        spatial=card.spatial,
        summary=f"registered with this lab ({card.kind})",
        names_classes=card.dataset is not None,
        side=card.side,
        card=card,
    )


LOADERS: Mapping[str, str] = {
    "classifier": "grafting_core.evaluation.features.classifier:load_classifier",
    "transformers": "grafting_core.evaluation.features.image_models:load_transformers_model",
    "timm": "grafting_core.evaluation.features.image_models:load_timm_model",
}
"""Kind of a registered network -> function (source, device) -> `FeatureNetwork`."""


class FeatureSource(Frozen):
    """A weight file, or a folder as transformers saves it, and the digest that it must have."""

    path: str
    sha256: Sha256


def feature_sources() -> dict[str, FeatureSource]:
    """Network name -> source, of the weights that the administrator named and of registered networks.

    Raises ValueError for a file that cannot be read or names an unknown network.
    """
    named = os.environ.get(SETTING)
    registered = {name: source for name, source in _SOURCES.items() if name in FEATURE_NETWORKS}
    return {**registered, **(_read_sources(Path(named)) if named else {})}


def _read_sources(file: Path) -> dict[str, FeatureSource]:
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
        found = TypeAdapter(dict[str, FeatureSource]).validate_python(document)
    except (OSError, ValidationError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{SETTING}: {file} cannot be used: {' '.join(str(error).split())[:300]}") from error
    kinds = FEATURE_NETWORKS.entries
    unknown = sorted(set(found) - {name for name, kind in kinds.items() if kind.weights != "shipped"})
    if unknown:
        raise ValueError(f"{SETTING}: {file} names {unknown[0]!r}; known: {', '.join(kinds)}")
    return found


def feature_digest(name: str) -> str | None:
    """SHA-256 of a network's weights; None if this lab does not have them."""
    kind = FEATURE_NETWORKS.entries.get(name)
    if kind is not None and kind.weights == "shipped":
        return kind.sha256
    source = feature_sources().get(name)
    return source.sha256 if source else None


def digest_of_path(path: Path) -> str:
    """SHA-256 of a file; for a folder, over the names and digests of the model's files in it."""
    hashed = hashlib.sha256()
    if path.is_dir():
        for file in _model_files(path):
            hashed.update(f"{file.name}:{digest_of_path(file)}\n".encode())
        return hashed.hexdigest()
    with path.open("rb") as opened:
        while chunk := opened.read(CHUNK_BYTES):
            hashed.update(chunk)
    return hashed.hexdigest()


def _model_files(folder: Path) -> Iterator[Path]:
    for file in sorted(folder.iterdir()):
        if file.suffix == ".safetensors" or file.name in ("config.json", "preprocessor_config.json"):
            yield file
