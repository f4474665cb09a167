"""The table of feature networks: name -> loader. Another network is one line here and one in the spec."""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from grafting_core.evaluation.features.base import FeatureNetwork
from grafting_core.specs.features import (
    FEATURE_KINDS,
    SETTING,
    FeatureSource,
    digest_of_path,
    feature_sources,
)

LOADERS: Mapping[str, tuple[str, str]] = {
    "fashion-cnn": ("grafting_core.testbed.feature_network", "load_fashion"),
    "inception": ("grafting_core.evaluation.features.inception_weights", "load_inception"),
    "dinov2": ("grafting_core.evaluation.features.transformers", "load_dinov2"),
    "clip": ("grafting_core.evaluation.features.transformers", "load_clip"),
}
"""By module and function, so that only the network in use needs its libraries."""

Load = Callable[[FeatureSource | None, torch.device | str], FeatureNetwork]


def load_network(
    name: str, device: torch.device | str = "cpu", source: FeatureSource | None = None
) -> FeatureNetwork:
    """A frozen network; `source` is looked up in the operator's settings where it is not given.

    Raises ValueError: an unknown name, no weights, or weights that are not what their digest says.
    """
    if name not in LOADERS:
        raise ValueError(f"unknown feature network {name!r}; use one of {', '.join(LOADERS)}")
    source = source or feature_sources().get(name)
    if FEATURE_KINDS[name].weights != "shipped":
        _check(name, source)
    module, function = LOADERS[name]
    loader: Any = getattr(import_module(module), function)
    network: FeatureNetwork = loader(source, device)
    return network


def _check(name: str, source: FeatureSource | None) -> None:
    what = FEATURE_KINDS[name].weights
    if source is None:
        raise ValueError(f"{name} needs a weight {what} of yours: name its path and sha256 in {SETTING}")
    path = Path(source.path)
    if not (path.is_dir() if what == "folder" else path.is_file()):
        raise ValueError(f"{name}: there is no weight {what} {path}")
    found = digest_of_path(path)
    if found != source.sha256:
        raise ValueError(f"{name}: {path} has SHA-256 {found}, not {source.sha256}; it was not opened")
