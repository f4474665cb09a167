"""A class-conditional latent DiT from a folder as diffusers' `DiTPipeline` saves it."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel
from safetensors import SafetensorError

from grafting_core.backbones.autoencoder import KLAutoencoder
from grafting_core.backbones.base import Backbone
from grafting_core.backbones.dit import silence_label_dropout
from grafting_core.backbones.table import family_of
from grafting_core.specs.backbone import BackboneCard, Pretraining
from grafting_core.specs.canonical import digest
from grafting_core.specs.dims import BlockDims
from grafting_core.specs.features import digest_of_path

DECODERS = ("vae", "autoencoder")
LEGACY = "Transformer2DModel"
"""What diffusers called every transformer once; a class-conditional DiT is one with `ada_norm_zero`."""
RECOMPUTED = {"pos_embed.pos_embed"}
"""Tensors that diffusers makes itself whatever a file holds."""
NAMED = 5


def is_diffusers_folder(folder: Path) -> bool:
    """Whether there is a transformer where `save_pretrained` puts one."""
    return (folder / "transformer" / "config.json").is_file()


def load_folder(folder: Path, device: torch.device | str = "cpu") -> Backbone:
    """Safetensors only, nothing downloaded; no training images, so it is compared with what is given.

    Raises ValueError where the folder holds something else, lacks a tensor, has one too many, or has
    numbers that are not finite: whatever is not loaded would be judged as it was initialised.
    """
    decoder = _decoder(folder)
    if decoder is None:
        raise ValueError(
            f"{folder} has a transformer but no decoder; {' or '.join(DECODERS)} is needed beside it"
        )
    _check_class(folder)
    transformer = _loaded(DiTTransformer2DModel, folder / "transformer").to(device)
    autoencoder = _loaded(AutoencoderKL, decoder).to(device)
    silence_label_dropout(transformer)
    card = _card(folder, transformer, decoder)
    return Backbone(card, family_of(card), transformer, KLAutoencoder(autoencoder))


def _decoder(folder: Path) -> Path | None:
    found = [folder / name for name in DECODERS if (folder / name / "config.json").is_file()]
    return found[0] if found else None


def _check_class(folder: Path) -> None:
    """Raises ValueError unless it is a class-conditional DiT, by its present or its former name."""
    file = folder / "transformer" / "config.json"
    try:
        config = json.loads(file.read_text())
        name, norm = config.get("_class_name"), config.get("norm_type")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file} is no JSON object: {str(error)[:200]}") from error
    wanted = DiTTransformer2DModel.__name__
    if name != wanted and (name, norm) != (LEGACY, "ada_norm_zero"):
        raise ValueError(f"{folder} holds a {name} with norm_type {norm!r}; a {wanted} is needed")


def _loaded(cls: Any, folder: Path) -> Any:
    """In float32, whatever precision it is stored in."""
    variant = _variant(cls, folder)
    try:
        model, info = cls.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            variant=variant,
            # Else accelerate, where it is installed, builds on the meta device, and a missing tensor ends
            # in its own traceback.
            low_cpu_mem_usage=False,
            torch_dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(f"{folder} holds no {cls.__name__}: {' '.join(str(error).split())[:300]}") from error
    _check_keys(folder, info)
    _check_finite(folder, model)
    return model.eval().requires_grad_(False)


def _variant(cls: Any, folder: Path) -> str | None:
    """`fp16` of `diffusion_pytorch_model.fp16.safetensors` where nothing else is there.

    Raises ValueError, with the lines that convert, where there are pickled weights alone.
    """
    found = {file.name for file in folder.glob("*.safetensors*")}
    if not found and (pickled := sorted(file.name for file in folder.glob("*.bin"))):
        raise ValueError(
            f"{folder} has {pickled[0]} and no safetensors; pickled weights are never opened here. "
            "These lines convert them:\n"
            f"from diffusers import {cls.__name__}\n"
            f'{cls.__name__}.from_pretrained("{folder}", use_safetensors=False).save_pretrained("{folder}")'
        )
    if any(
        re.fullmatch(r"diffusion_pytorch_model(\.safetensors(\.index\.json)?|-\d+.*)", name) for name in found
    ):
        return None
    variants = {
        match[1] for name in found if (match := re.match(r"diffusion_pytorch_model\.(\w+?)[.-]", name))
    }
    return min(variants - {"safetensors"}, default=None)


def _check_keys(folder: Path, info: dict[str, Any]) -> None:
    parts = {
        "lacks": sorted(info["missing_keys"]),
        "has besides": sorted(set(info["unexpected_keys"]) - RECOMPUTED),
        "has in another shape": sorted(str(key[0]) for key in info["mismatched_keys"]),
    }
    wrong = [f"{what} {_named(names)}" for what, names in parts.items() if names]
    if wrong:
        raise ValueError(f"{folder}: the weights are not those of its config.json: {'; '.join(wrong)}")


def _check_finite(folder: Path, model: Any) -> None:
    broken = [name for name, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ValueError(f"{folder}: weights that are not finite numbers: {_named(broken)}")


def _named(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _card(folder: Path, transformer: Any, decoder: Path) -> BackboneCard:
    config = transformer.config
    side = config.sample_size // config.patch_size
    width = config.num_attention_heads * config.attention_head_dim
    return BackboneCard(
        name=folder.resolve().name,
        digest=digest(
            {"transformer": digest_of_path(folder / "transformer"), "decoder": digest_of_path(decoder)}
        ),
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
