"""A class-conditional latent DiT from a folder as diffusers' `DiTPipeline` saves it."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel

from grafting_core.backbones.loader import Backbone
from grafting_core.metrics.moments import Moments
from grafting_core.spec.backbone import BackboneCard, Pretraining
from grafting_core.spec.dims import BlockDims
from grafting_core.spec.features import digest_of_path
from grafting_core.testbed.assets import load_classifier
from grafting_core.testbed.networks import silence_label_dropout

DECODERS = ("vae", "autoencoder")


def is_diffusers_folder(folder: Path) -> bool:
    """Whether transformer and decoder are where `save_pretrained` puts them."""
    return (folder / "transformer" / "config.json").is_file() and _decoder(folder) is not None


def load_folder(folder: Path, device: torch.device | str = "cpu") -> Backbone:
    """Safetensors only, nothing downloaded; no training images, so it is compared with what is given.

    Raises ValueError where the folder holds something else.
    """
    decoder = _decoder(folder)
    config = json.loads((folder / "transformer" / "config.json").read_text())
    if config.get("_class_name") != "DiTTransformer2DModel" or decoder is None:
        raise ValueError(f"{folder} holds a {config.get('_class_name')}; a DiTTransformer2DModel is needed")
    transformer = _loaded(DiTTransformer2DModel, folder / "transformer").to(device)
    autoencoder = _loaded(AutoencoderKL, decoder).to(device)
    silence_label_dropout(transformer)
    return Backbone(
        card=_card(folder, transformer, decoder),
        transformer=transformer,
        autoencoder=autoencoder,
        features=load_classifier().to(device),
        scaling_factor=float(autoencoder.config.scaling_factor),
        images=torch.empty(0, 1, 1, dtype=torch.uint8),
        labels=torch.empty(0, dtype=torch.long),
        reference=Moments.of(torch.zeros(2, 1).numpy()),
        held_out=(torch.empty(0, 1, 1, dtype=torch.uint8), torch.empty(0, dtype=torch.long)),
    )


def _decoder(folder: Path) -> Path | None:
    found = [folder / name for name in DECODERS if (folder / name / "config.json").is_file()]
    return found[0] if found else None


def _loaded(cls: Any, folder: Path) -> Any:
    try:
        model = cls.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ValueError(f"{folder} holds no {cls.__name__}: {' '.join(str(error).split())[:300]}") from error
    return model.eval().requires_grad_(False)


def _card(folder: Path, transformer: Any, decoder: Path) -> BackboneCard:
    config = transformer.config
    side = config.sample_size // config.patch_size
    width = config.num_attention_heads * config.attention_head_dim
    return BackboneCard(
        name=folder.resolve().name,
        digest=digest_of_path(folder / "transformer"),
        depth=config.num_layers,
        dims=BlockDims(width=width, num_heads=config.num_attention_heads, mlp_ratio=4.0, grid=(side, side)),
        patch_size=config.patch_size,
        latent_channels=config.in_channels,
        num_classes=config.num_embeds_ada_norm,
        num_params=sum(parameter.numel() for parameter in transformer.parameters()),
        decoder_flops=0,
        pretraining=Pretraining(flops=1.0, images=0, steps=0, batch_size=0),
        feature_network="inception",
        num_images=0,
        weights=".",
    )
