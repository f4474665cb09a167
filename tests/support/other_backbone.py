"""A second backbone, data set and feature network, as another package would add them.

Colour images of 8 x 8 in three classes, latents that equal the pixels, and a DiT of two blocks on a grid
of 4 x 4.
"""

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn

from grafting_core.backbones.autoencoder import IdentityAutoencoder
from grafting_core.backbones.base import Backbone
from grafting_core.backbones.dit import silence_label_dropout
from grafting_core.backbones.table import family_of
from grafting_core.data.datasets import LabelledImages
from grafting_core.specs.backbone import BackboneCard, BackboneEntry, HeldOutImages, Pretraining
from grafting_core.specs.datasets import DatasetEntry
from grafting_core.specs.dims import BlockDims
from grafting_core.specs.features import FeatureKind, FeatureSource

CLASSES = 3
CARD = BackboneCard(
    name="other/dit-flags",
    digest="ab" * 32,
    depth=2,
    dims=BlockDims(width=24, num_heads=2, mlp_ratio=4.0, grid=(4, 4)),
    patch_size=2,
    latent_channels=3,
    num_classes=CLASSES,
    num_params=60_000,
    decoder_flops=0,
    pretraining=Pretraining(flops=1e9, images=1, steps=1, batch_size=1),
    feature_network="other-means",
    dataset="other/flags",
    num_images=48,
    held_out=HeldOutImages(images=24, digest="cd" * 32),
    weights=".",
)
HERE = "tests.support.other_backbone"
BACKBONE = BackboneEntry(api=1, card=CARD, load=f"{HERE}:load_backbone")
DATASET = DatasetEntry(api=1, load=f"{HERE}:load_dataset")
FEATURE_NETWORK = FeatureKind(
    api=1,
    load=f"{HERE}:load_network",
    weights="shipped",
    spatial=False,
    summary="means of colours by quarter of the image",
    names_classes=True,
    sha256="ef" * 32,
)
OUTDATED = BackboneEntry(api=0, card=CARD, load=f"{HERE}:load_backbone")


def load_backbone(card: BackboneCard, device: torch.device) -> Backbone:
    """Load the backbone with random weights, which are always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=3,
            out_channels=6,
            num_layers=card.depth,
            sample_size=8,
            patch_size=2,
            num_embeds_ada_norm=CLASSES,
        )
        for parameter in transformer.parameters():
            nn.init.normal_(parameter, std=0.05)
    silence_label_dropout(transformer)
    frozen = transformer.to(device).eval().requires_grad_(False)
    return Backbone(card, family_of(card), frozen, IdentityAutoencoder())


def flags(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Make images [N, 8, 8, 3] in which the colour of the class is strongest, with their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    images = torch.randint(0, 100, (count, 8, 8, 3), generator=generator, dtype=torch.uint8)
    images[torch.arange(count), :, :, labels] += 150
    return images, labels


def load_dataset() -> LabelledImages:
    images, labels = flags(48, seed=1)
    unseen, unseen_labels = flags(24, seed=2)
    return LabelledImages("other/flags", "12" * 32, images, labels, unseen, unseen_labels)


class ColourMeans:
    """Feature network with 12 features, the mean of every colour per quarter; logits name the strongest
    colour.
    """

    name, digest, device = "other-means", "ef" * 32, torch.device("cpu")

    def __call__(self, images_NHWC: Tensor) -> tuple[Tensor, None, Tensor]:
        pixels = images_NHWC.float().permute(0, 3, 1, 2)
        return nn.functional.adaptive_avg_pool2d(pixels, 2).flatten(1), None, pixels.mean(dim=(2, 3))


def load_network(source: FeatureSource | None, device: torch.device | str) -> ColourMeans:
    return ColourMeans()
