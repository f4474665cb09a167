"""Load feature networks by name."""

from pathlib import Path

import torch

from grafting_core.evaluation.features.base import FeatureNetwork
from grafting_core.specs.features import (
    FEATURE_NETWORKS,
    SETTING,
    FeatureKind,
    FeatureSource,
    digest_of_path,
    feature_sources,
)


def load_network(
    name: str, device: torch.device | str = "cpu", source: FeatureSource | None = None
) -> FeatureNetwork:
    """Load a frozen network; without `source` its weights are those of the administrator's settings.

    Raises ValueError: unknown name, missing weights, or weights that do not match their digest.
    """
    kind = FEATURE_NETWORKS.find(name)
    source = source or feature_sources().get(name)
    if kind.weights != "shipped":
        _check(name, kind, source)
    network: FeatureNetwork = kind.loader(source, device)
    if kind.card is not None:
        # Metrics are named by it; the folder may have another name.
        network.name = name
    return network


def _check(name: str, kind: FeatureKind, source: FeatureSource | None) -> None:
    what = kind.weights
    if source is None:
        raise ValueError(f"{name} needs a weight {what}: name its path and sha256 in {SETTING}")
    path = Path(source.path)
    if not (path.is_dir() if what == "folder" else path.is_file()):
        raise ValueError(f"{name}: weight {what} {path} does not exist")
    digest = digest_of_path(path)
    if digest != source.sha256:
        raise ValueError(f"{name}: {path} has SHA-256 {digest}, not {source.sha256}; it was not loaded")
