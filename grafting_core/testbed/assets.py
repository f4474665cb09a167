"""Load the files shipped with the package: safetensors and plain arrays; nothing is unpickled."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel
from safetensors.torch import load_file
from torch import Tensor

from grafting_core.backbones.autoencoder import KLAutoencoder
from grafting_core.backbones.base import Backbone
from grafting_core.backbones.dit import silence_label_dropout
from grafting_core.backbones.table import family_of
from grafting_core.data.datasets import FeatureStatistics, LabelledImages
from grafting_core.specs.backbone import BackboneCard
from grafting_core.specs.features import digest_of_path
from grafting_core.testbed.networks import FashionClassifier
from grafting_core.testbed.plugin import ASSETS

DATASET_NAME = "testbed/fashion-mnist"
PLAIN = {"use_safetensors": True, "low_cpu_mem_usage": False}
"""Arguments for small models, which need no accelerate."""


def load_classifier(folder: Path = ASSETS) -> FashionClassifier:
    """The feature network `fashion-cnn`, frozen."""
    model = FashionClassifier()
    model.load_state_dict(load_file(folder / "classifier.safetensors"))
    return model.eval().requires_grad_(False)


def load_autoencoder(folder: Path = ASSETS) -> AutoencoderKL:
    """28x28 gray to 4x7x7 latents, frozen; `config.scaling_factor` gives them unit variance."""
    model: AutoencoderKL = AutoencoderKL.from_pretrained(folder / "autoencoder", **PLAIN)
    return model.eval().requires_grad_(False)


def load_transformer(folder: Path = ASSETS) -> DiTTransformer2DModel:
    """The teacher, frozen, with the label dropout of its embedders switched off."""
    model: DiTTransformer2DModel = DiTTransformer2DModel.from_pretrained(folder / "transformer", **PLAIN)
    silence_label_dropout(model)
    return model.eval().requires_grad_(False)


def load_images(folder: Path = ASSETS) -> tuple[Tensor, Tensor]:
    """A stratified tenth of the training images: uint8 [6000, 28, 28] and labels [6000]."""
    return _images(folder / "images.npz")


def load_held_out_images(folder: Path = ASSETS) -> tuple[Tensor, Tensor]:
    """A stratified tenth of the test images, which no training uses: uint8 [1000, 28, 28] and labels."""
    return _images(folder / "held_out.npz")


def _images(file: Path) -> tuple[Tensor, Tensor]:
    with np.load(file, allow_pickle=False) as arrays:
        return torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"]).long()


def load_reference(folder: Path = ASSETS) -> FeatureStatistics:
    """Statistics of the features of all 60,000 training images."""
    with np.load(folder / "reference.npz", allow_pickle=False) as arrays:
        return FeatureStatistics(int(arrays["count"]), arrays["mean"], arrays["scatter"])


def load_testbed(card: BackboneCard, device: torch.device) -> Backbone:
    """The teacher with its autoencoder."""
    autoencoder = KLAutoencoder(load_autoencoder().to(device))
    return Backbone(card, family_of(card), load_transformer().to(device), autoencoder)


def load_fashion_mnist() -> LabelledImages:
    """A tenth of Fashion-MNIST, with the feature statistics of all training images."""
    images, labels = load_images()
    held_out_images, held_out_labels = load_held_out_images()
    return LabelledImages(
        name=DATASET_NAME,
        digest=digest_of_path(ASSETS / "images.npz"),
        images=images,
        labels=labels,
        held_out_images=held_out_images,
        held_out_labels=held_out_labels,
        inverted=True,
        statistics={"fashion-cnn": load_reference()},
    )
