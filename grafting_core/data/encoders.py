"""Autoencoders that encode data sets, with the digest that a data set's card contains."""

from dataclasses import dataclass
from pathlib import Path

import torch

from grafting_core.backbones.autoencoder import Autoencoder, KLAutoencoder
from grafting_core.backbones.autoencoder_folder import read_kl
from grafting_core.backbones.weight_files import part_digest


@dataclass(frozen=True)
class Encoder:
    """An autoencoder; `digest` is the SHA-256 of its files, as in the cards of its backbones."""

    autoencoder: Autoencoder
    digest: str
    scale: float
    shift: float = 0.0
    device: torch.device | str = "cpu"


def load_encoder(folder: Path, device: torch.device | str = "cpu") -> Encoder:
    """Load the folder of an AutoencoderKL of diffusers. Raises ValueError as `read_kl` does."""
    found = KLAutoencoder(read_kl(folder).to(device))
    return Encoder(found, part_digest(folder), found.scale, found.shift, device)
