"""Entries of the testbed for the tables of backbones, data sets and feature networks; loads no weights."""

from pathlib import Path

from grafting_core.specs.backbone import BackboneCard, BackboneEntry
from grafting_core.specs.datasets import DatasetEntry
from grafting_core.specs.features import FeatureKind, digest_of_path

ASSETS = Path(__file__).parent / "assets"
CARD = ASSETS / "card.json"
CLASSIFIER = ASSETS / "classifier.safetensors"

BACKBONE = BackboneEntry(
    api=1,
    card=BackboneCard.model_validate_json(CARD.read_text()),
    load="grafting_core.testbed.assets:load_testbed",
)
DATASET = DatasetEntry(api=1, load="grafting_core.testbed.assets:load_fashion_mnist")
FEATURE_NETWORK = FeatureKind(
    api=1,
    load="grafting_core.testbed.feature_network:load_fashion",
    weights="shipped",
    spatial=True,
    summary="small CNN for 28 x 28 gray images",
    names_classes=True,
    side=28,
    sha256=digest_of_path(CLASSIFIER),
)
