"""Small random backbones in folders as diffusers saves them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

State = dict[str, Tensor]
SAFETENSORS = "diffusion_pytorch_model.safetensors"
SMALL: dict[str, Any] = {
    "num_attention_heads": 4,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 3,
    "sample_size": 16,
    "patch_size": 2,
    "num_embeds_ada_norm": 5,
}
"""64 tokens of width 64, learned variance."""
PIXELS = {"in_channels": 3, "out_channels": 3}
UNLABELLED = {"num_embeds_ada_norm": 0}


def random_transformer(*, repeated: bool = True, seed: int = 0, **changes: Any) -> DiTTransformer2DModel:
    """Every weight is drawn non-zero, gates and the last layer too; `repeated` copies the first embedder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = DiTTransformer2DModel(**{**SMALL, **changes})
        for parameter in transformer.parameters():
            nn.init.normal_(parameter, std=0.08)
    if repeated:
        first, *others = transformer.transformer_blocks
        for block in others:
            block.norm1.emb.load_state_dict(first.norm1.emb.state_dict())
    return transformer.eval()


def random_autoencoder(latent_channels: int = 4) -> AutoencoderKL:
    """RGB images of twice the latents' side."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 16),
            norm_num_groups=4,
            latent_channels=latent_channels,
            scaling_factor=0.5,
        ).eval()


def write_folder(
    folder: Path,
    *,
    vae: bool = True,
    scheduler: dict[str, Any] | None = None,
    repeated: bool = True,
    saved: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """A pipeline's folder. `saved` are arguments of diffusers' `save_pretrained`, `changes` of its DiT."""
    transformer = random_transformer(repeated=repeated, **changes)
    transformer.save_pretrained(folder / "transformer", **(saved or {}))
    if vae:
        random_autoencoder().save_pretrained(folder / "vae")
    if scheduler is not None:
        (folder / "scheduler").mkdir(parents=True)
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return folder


def change_config(folder: Path, **changes: Any) -> None:
    """Of one part; None takes a field out."""
    file = folder / "config.json"
    document = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({name: value for name, value in document.items() if value is not None}))


def change_weights(folder: Path, edit: Callable[[State], State]) -> None:
    """Of one part that is stored as one safetensors file."""
    [file] = folder.glob("*.safetensors")
    save_file(edit(load_file(file)), file, metadata={"format": "pt"})
