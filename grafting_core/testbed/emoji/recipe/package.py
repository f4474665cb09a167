"""Write the files that ship: weights in half precision, the card, and sheets of images."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import PixArtTransformer2DModel
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch import Tensor, nn

WEIGHTS = "diffusion_pytorch_model.safetensors"


def write_network(model: nn.Module, file: Path) -> None:
    """Write weights atomically as safetensors, floating-point ones in half precision."""
    state = {
        key: value.detach()
        .to("cpu", torch.float16 if value.is_floating_point() else value.dtype)
        .contiguous()
        for key, value in model.state_dict().items()
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp")
    save_file(state, temporary, metadata={"format": "pt"})
    os.replace(temporary, file)  # noqa: PTH105 - atomic


def write_transformer(model: PixArtTransformer2DModel, folder: Path) -> None:
    """Write a folder in diffusers' format: configuration and weights."""
    model.save_config(folder)
    write_network(model, folder / WEIGHTS)


def write_card(folder: Path, card: Mapping[str, Any]) -> None:
    """Write the card as JSON."""
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n")


def write_sheet(
    pictures_BCHW: Tensor, texts: Sequence[str], file: Path, columns: int = 8, side: int = 192
) -> None:
    """Draw images in rows with their captions below."""
    rows = -(-len(texts) // columns)
    sheet = Image.new("RGB", (columns * (side + 8), rows * (side + 22)), "white")
    pen = ImageDraw.Draw(sheet)
    pixels = pictures_BCHW.detach().float().cpu().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    for number, (picture, text) in enumerate(zip(pixels, texts, strict=True)):
        left, top = number % columns * (side + 8), number // columns * (side + 22)
        shown = Image.fromarray(picture.permute(1, 2, 0).numpy()).resize(
            (side, side), Image.Resampling.NEAREST
        )
        sheet.paste(shown, (left, top))
        pen.text((left, top + side + 2), text.removeprefix("a photo of "), fill="black")
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(file)
