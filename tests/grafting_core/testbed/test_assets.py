"""What ships is small, is what the card says, and works."""

import torch

from grafting_core.backbones.base import Backbone
from grafting_core.data.datasets import LabelledImages
from grafting_core.specs.backbone import backbone_cards
from grafting_core.testbed.assets import load_classifier
from grafting_core.testbed.plugin import ASSETS
from grafting_core.testbed.recipe.package import num_params, weights_digest

MEGABYTE = 1_000_000


def test_the_shipped_files_are_at_most_twenty_megabytes() -> None:
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) <= 20 * MEGABYTE


def test_the_card_names_these_very_weights(backbone: Backbone) -> None:
    assert backbone_cards()["testbed/dit-fashion"].digest == weights_digest(ASSETS)


def test_the_card_counts_what_is_loaded(backbone: Backbone, dataset: LabelledImages) -> None:
    assert num_params(backbone.transformer) == backbone.card.num_params
    assert len(dataset.images) == backbone.card.num_images == 6000


def test_the_images_are_stratified(dataset: LabelledImages) -> None:
    assert dataset.labels.bincount().tolist() == [600] * 10


def test_no_embedder_drops_labels_by_itself(backbone: Backbone) -> None:
    rates = [m.dropout_prob for m in backbone.transformer.modules() if hasattr(m, "dropout_prob")]
    assert len(rates) == backbone.card.depth
    assert set(rates) == {0.0}


@torch.no_grad()
def test_the_classifier_knows_the_shipped_images(dataset: LabelledImages) -> None:
    pixels = dataset.images[:1000].float().div(127.5).sub(1).unsqueeze(1)
    accuracy = (load_classifier()(pixels).argmax(1) == dataset.labels[:1000]).float().mean().item()
    assert accuracy >= 0.92


@torch.no_grad()
def test_the_autoencoder_restores_images(backbone: Backbone, dataset: LabelledImages) -> None:
    pixels = dataset.images[:200].float().div(127.5).sub(1).unsqueeze(1)
    latents, _ = backbone.autoencoder.encode(pixels)
    restored = backbone.autoencoder.decode(latents)
    assert latents.shape == (200, 4, 7, 7)
    assert (restored - pixels).abs().mean().item() < 0.1
    assert 0.9 < latents.std().item() < 1.1
