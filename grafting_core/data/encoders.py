"""Autoencoders that encode data sets, with the digest that a data set's card contains."""

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors import SafetensorError

from grafting_core.backbones.autoencoder import Autoencoder, KLAutoencoder
from grafting_core.specs.canonical import digest
from grafting_core.specs.features import digest_of_path

WEIGHTS = "diffusion_pytorch_model"


@dataclass(frozen=True)
class Encoder:
    """An autoencoder; `digest` is the SHA-256 of its files, as in the cards of its backbones."""

    autoencoder: Autoencoder
    digest: str
    scale: float
    shift: float = 0.0
    device: torch.device | str = "cpu"


def load_encoder(folder: Path, device: torch.device | str = "cpu") -> Encoder:
    """Load a folder in which diffusers saved an AutoencoderKL as safetensors. Raises ValueError."""
    try:
        model, info = AutoencoderKL.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,
            torch_dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{folder} contains no AutoencoderKL: {reason}") from error
    wrong = [*info["missing_keys"], *info["unexpected_keys"], *map(str, info["mismatched_keys"])]
    if wrong:
        raise ValueError(f"{folder}: the weights are not those of its config.json: {', '.join(wrong[:5])}")
    if not all(torch.isfinite(tensor).all() for tensor in model.state_dict().values()):
        raise ValueError(f"{folder}: weights that are not finite numbers")
    found = KLAutoencoder(model.to(device).eval().requires_grad_(False))
    return Encoder(found, autoencoder_digest(folder), found.scale, found.shift, device)


def autoencoder_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of config and weights, as in backbones' cards."""
    weights = sorted(folder.glob(f"{WEIGHTS}*.safetensors"))
    whole = [file for file in weights if file.name == f"{WEIGHTS}.safetensors"]
    files = [folder / "config.json", *(whole or weights)]
    return digest({file.name: digest_of_path(file) for file in files})
