"""Load a class-conditional latent DiT from a folder as saved by diffusers' `DiTPipeline`."""

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
"""Former class name of every transformer in diffusers; with `ada_norm_zero` it is a class-conditional DiT."""
RECOMPUTED = {"pos_embed.pos_embed"}
"""Tensors that diffusers computes itself; those in the file are ignored."""
NAMED = 5


def is_diffusers_folder(folder: Path) -> bool:
    """Whether the folder has a transformer where `save_pretrained` writes one."""
    return (folder / "transformer" / "config.json").is_file()


def load_folder(folder: Path, device: torch.device | str = "cpu") -> Backbone:
    """Load from safetensors, without downloads. The backbone has no data set, so references must be given.

    Raises ValueError if the folder has another kind of model, a tensor is missing or surplus, or values are
    not finite: a tensor that is not loaded would keep its random initial values.
    """
    decoder = _decoder(folder)
    if decoder is None:
        raise ValueError(f"{folder} has a transformer but no decoder; add a folder {' or '.join(DECODERS)}")
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
    """Raise ValueError unless it is a class-conditional DiT, by its present or former class name."""
    file = folder / "transformer" / "config.json"
    try:
        config = json.loads(file.read_text())
        name, norm = config.get("_class_name"), config.get("norm_type")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file} is not a JSON object: {str(error)[:200]}") from error
    needed = DiTTransformer2DModel.__name__
    if name != needed and (name, norm) != (LEGACY, "ada_norm_zero"):
        raise ValueError(f"{folder} holds a {name} with norm_type {norm!r}; a {needed} is needed")


def _loaded(cls: Any, folder: Path) -> Any:
    """The model in float32, whatever precision it is stored in."""
    variant = _variant(cls, folder)
    try:
        model, info = cls.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            variant=variant,
            # Otherwise accelerate, if installed, builds on the meta device, and a missing tensor ends in
            # its own traceback.
            low_cpu_mem_usage=False,
            torch_dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(f"{folder} is no {cls.__name__}: {' '.join(str(error).split())[:300]}") from error
    _check_keys(folder, info)
    _check_finite(folder, model)
    return model.eval().requires_grad_(False)


def _variant(cls: Any, folder: Path) -> str | None:
    """Variant such as `fp16` of `diffusion_pytorch_model.fp16.safetensors`, if there is no plain file.

    Raises ValueError, with code for conversion, if there are only pickled weights.
    """
    found = {file.name for file in folder.glob("*.safetensors*")}
    if not found and (pickled := sorted(file.name for file in folder.glob("*.bin"))):
        raise ValueError(
            f"{folder} has {pickled[0]} but no safetensors; pickled weights are never loaded. "
            "Convert them with:\n"
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
        raise ValueError(f"{folder}: the weights do not match its config.json: {'; '.join(wrong)}")


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
