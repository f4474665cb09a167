"""Load the emoji testbed's files: safetensors in half precision, used in float32."""

import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import PixArtTransformer2DModel
from safetensors.torch import load_file
from torch import nn

from grafting_core.testbed.emoji.atlas import Atlas, load_atlas
from grafting_core.testbed.emoji.autoencoder import PatchAutoencoder
from grafting_core.testbed.emoji.detector import Detector
from grafting_core.testbed.emoji.sampling import Painter
from grafting_core.testbed.emoji.text_encoder import TextEncoder
from grafting_core.testbed.emoji.transformer import BASE_RESOLUTION, RESOLUTIONS, set_resolution

ASSETS = Path(__file__).parent / "assets"
RECIPE = "python -m grafting_core.testbed.emoji.recipe"
Network = TypeVar("Network", bound=nn.Module)


def transformer_folder(resolution: int) -> str:
    """Folder of the weights: one for 64 pixels, one for all larger resolutions."""
    if resolution not in RESOLUTIONS:
        raise ValueError(f"the testbed draws at {', '.join(map(str, RESOLUTIONS))} pixels, not {resolution}")
    return "transformer-64" if resolution == BASE_RESOLUTION else "transformer-192"


def emoji_atlas(folder: Path = ASSETS) -> Atlas:
    """Tiles that scenes are drawn from."""
    return load_atlas(folder / "atlas.png")


def load_autoencoder(folder: Path = ASSETS) -> PatchAutoencoder:
    """Autoencoder of pixels and latents, frozen."""
    return _filled(PatchAutoencoder(), folder / "autoencoder.safetensors")


def load_text_encoder(folder: Path = ASSETS) -> TextEncoder:
    """Text encoder, frozen; the same for every resolution."""
    return _filled(TextEncoder(), folder / "text_encoder.safetensors")


def load_detector(folder: Path = ASSETS) -> Detector:
    """Detector that evaluates images, frozen."""
    return _filled(Detector(), folder / "detector.safetensors")


def load_transformer(resolution: int = BASE_RESOLUTION, folder: Path = ASSETS) -> PixArtTransformer2DModel:
    """The teacher for a resolution, frozen."""
    weights = _made(folder / transformer_folder(resolution))
    model: PixArtTransformer2DModel = PixArtTransformer2DModel.from_pretrained(
        weights,
        use_safetensors=True,
        low_cpu_mem_usage=False,
        torch_dtype=torch.float32,
    )
    set_resolution(model, resolution)
    return model.eval().requires_grad_(False)


def load_painter(resolution: int = BASE_RESOLUTION, folder: Path = ASSETS) -> Painter:
    """All networks that generate images of a resolution from captions."""
    transformer = load_transformer(resolution, folder)
    return Painter(transformer, load_text_encoder(folder), load_autoencoder(folder), resolution)


def load_card(folder: Path = ASSETS) -> dict[str, Any]:
    """Card with sizes, recipe, times and scores."""
    card: dict[str, Any] = json.loads(_made(folder / "card.json").read_text())
    return card


def _filled(model: Network, file: Path) -> Network:
    model.load_state_dict(load_file(_made(file)))
    return model.eval().requires_grad_(False)


def _made(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; make it by `{RECIPE} --work DIR --assets {path.parent}`")
    return path
