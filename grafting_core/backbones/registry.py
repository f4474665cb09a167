"""From a backbone's name to its weights in memory."""

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from grafting_core.evaluation.metrics.moments import Moments
from grafting_core.specs.backbone import BackboneCard, backbone_cards
from grafting_core.testbed import assets
from grafting_core.testbed.networks import FashionClassifier


@dataclass(frozen=True)
class Backbone:
    """A pretrained latent DiT with what surrounds it. All modules frozen and in evaluation mode.

    `images` uint8 [N, H, W] and `labels` [N] are its training images at hand, `held_out` the same of images
    that no training has seen; `reference` holds the feature moments of the whole training set.
    """

    card: BackboneCard
    transformer: nn.Module
    autoencoder: AutoencoderKL
    features: FashionClassifier
    scaling_factor: float
    images: Tensor
    labels: Tensor
    reference: Moments
    held_out: tuple[Tensor, Tensor]

    @property
    def device(self) -> torch.device:
        return next(self.transformer.parameters()).device


def load_backbone(name: str, device: torch.device | str = "cpu") -> Backbone:
    """Raises ValueError for a name the lab does not know or has no weights of."""
    card = backbone_cards().get(name)
    if card is None or card.weights is None:
        runnable = [known.name for known in backbone_cards().values() if known.weights]
        raise ValueError(f"backbone {name!r} has no weights here; use one of {', '.join(runnable)}")
    autoencoder = assets.load_autoencoder().to(device)
    images, labels = assets.load_images()
    return Backbone(
        card=card,
        transformer=assets.load_transformer().to(device),
        autoencoder=autoencoder,
        features=assets.load_classifier().to(device),
        scaling_factor=float(autoencoder.config.scaling_factor),
        images=images,
        labels=labels,
        reference=assets.load_reference(),
        held_out=assets.load_held_out_images(),
    )
