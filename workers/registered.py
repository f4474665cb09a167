"""What a lab has registered, made known to a worker's process with its files at hand."""

from grafting_core.specs.backbone import BackboneCard, register_cards
from grafting_core.specs.datasets import DatasetCard, register_datasets
from grafting_core.specs.features import FeatureCard, register_features
from grafting_core.specs.registration import Registry, What, registry_folder
from grafting_core.storage.folders import local_folder
from grafting_core.storage.storage import Storage


def make_known(storage: Storage, registry: Registry) -> None:
    """Fill this process's tables with these cards, in place of those of the ticket before.

    Raises FileNotFoundError where a revision's files are gone, CorruptArtifact where they are damaged.
    """
    register_cards([_backbone(storage, card) for card in registry.backbones])
    register_datasets([_dataset(storage, card) for card in registry.datasets])
    register_features([_features(storage, card) for card in registry.features])


def _backbone(storage: Storage, card: BackboneCard) -> BackboneCard:
    return card.model_copy(update={"weights": _place(storage, "backbone", card.digest)})


def _dataset(storage: Storage, card: DatasetCard) -> DatasetCard:
    return card.model_copy(update={"folder": _place(storage, "dataset", card.digest)})


def _features(storage: Storage, card: FeatureCard) -> FeatureCard:
    return card.model_copy(update={"folder": _place(storage, "features", card.digest)})


def _place(storage: Storage, what: What, digest: str) -> str:
    return str(local_folder(storage, registry_folder(what, digest)))
