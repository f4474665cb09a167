"""Convert pretraining checkpoints to the files that ship, with their card."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel
from safetensors.torch import save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from grafting_core.evaluation.metrics.moments import Moments
from grafting_core.specs.backbone import BackboneCard, HeldOutImages, Pretraining
from grafting_core.specs.dims import BlockDims
from grafting_core.specs.features import digest_of_path
from grafting_core.testbed.assets import DATASET_NAME
from grafting_core.testbed.networks import FashionClassifier, build_autoencoder
from grafting_core.testbed.plugin import ASSETS
from grafting_core.testbed.recipe.data import read_split, stratified, to_pixels
from grafting_core.testbed.recipe.transformer import BATCH

SHARE = 0.1
"""Share of training images that ship (the paper's stage-2 share), and of test images, for holding out."""
HELD_OUT = "held_out.npz"
NAME = "testbed/dit-fashion"


def write_package(
    classifier: FashionClassifier,
    autoencoder: AutoencoderKL,
    transformer: DiTTransformer2DModel,
    factor: float,
    pretraining: Pretraining,
    figures: dict[str, float],
    folder: Path = ASSETS,
) -> BackboneCard:
    """Write weights, images, reference moments and the card; returns the card."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(classifier.state_dict(), folder / "classifier.safetensors")
    scaled = build_autoencoder(factor)
    scaled.load_state_dict(autoencoder.state_dict())
    scaled.save_pretrained(folder / "autoencoder")
    transformer.save_pretrained(folder / "transformer")
    _write_images(folder)
    _write_reference(folder, classifier)
    card = _card(transformer, autoencoder, pretraining, figures, folder)
    paid = pretraining.model_copy(update={"flops": 3.0 * card.forward_flops() * pretraining.images})
    return write_card(card.model_copy(update={"pretraining": paid}), folder)


def write_card(card: BackboneCard, folder: Path = ASSETS) -> BackboneCard:
    """Write the card as readable JSON."""
    (folder / "card.json").write_text(json.dumps(card.model_dump(mode="json"), indent=2) + "\n")
    return card


def _write_images(folder: Path) -> None:
    for file, split in (("images.npz", "train"), (HELD_OUT, "t10k")):
        images, labels = read_split(split)
        chosen = stratified(labels, SHARE, seed=0)
        np.savez_compressed(folder / file, images=images[chosen], labels=labels[chosen])


@torch.no_grad()
def feature_moments(classifier: FashionClassifier, images: Any) -> Moments:
    """Moments of the classifier's features, chunk by chunk in order."""
    chunks = [images[i : i + 500] for i in range(0, len(images), 500)]
    moments = [Moments.of(classifier.features(to_pixels(chunk)).numpy()) for chunk in chunks]
    total = moments[0]
    for part in moments[1:]:
        total = total.merge(part)
    return total


def _write_reference(folder: Path, classifier: FashionClassifier) -> None:
    total = feature_moments(classifier, read_split("train")[0])
    np.savez(folder / "reference.npz", count=total.count, mean=total.mean, scatter=total.scatter)


def _card(
    transformer: DiTTransformer2DModel,
    autoencoder: AutoencoderKL,
    pretraining: Pretraining,
    figures: dict[str, float],
    folder: Path,
) -> BackboneCard:
    config = transformer.config
    width = config.num_attention_heads * config.attention_head_dim
    side = config.sample_size // config.patch_size
    return BackboneCard(
        name=NAME,
        dataset=DATASET_NAME,
        digest=weights_digest(folder),
        depth=config.num_layers,
        dims=BlockDims(width=width, num_heads=config.num_attention_heads, mlp_ratio=4.0, grid=(side, side)),
        patch_size=config.patch_size,
        latent_channels=config.in_channels,
        num_classes=config.num_embeds_ada_norm,
        num_params=num_params(transformer),
        decoder_flops=decoder_flops(autoencoder),
        pretraining=pretraining,
        feature_network="fashion-cnn",
        num_images=6_000,
        held_out=HeldOutImages(images=1_000, digest=digest_of_path(folder / HELD_OUT)),
        weights=".",
        figures=figures,
    )


def num_params(module: nn.Module) -> int:
    """Number of parameters; shared ones count once."""
    return sum(parameter.numel() for parameter in module.parameters())


def decoder_flops(autoencoder: AutoencoderKL) -> int:
    """FLOPs of decoding one latent, counted by running the decoder."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        autoencoder.decode(torch.zeros(1, 4, 7, 7))
    return int(counter.get_total_flops())


def weights_digest(folder: Path) -> str:
    """SHA-256 over all files that training and sampling depend on, in fixed order."""
    hashed = hashlib.sha256()
    files = [
        "transformer/diffusion_pytorch_model.safetensors",
        "autoencoder/diffusion_pytorch_model.safetensors",
    ]
    for name in [*files, "classifier.safetensors", "images.npz", "reference.npz"]:
        hashed.update((folder / name).read_bytes())
    return hashed.hexdigest()


def pretraining_cost(steps: int, device_seconds: float) -> Pretraining:
    """Cost of pretraining; its FLOPs, three forwards per image, are set once the sizes are known."""
    images = steps * BATCH
    return Pretraining(
        flops=1.0, images=images, steps=steps, batch_size=BATCH, device_seconds=round(device_seconds)
    )
