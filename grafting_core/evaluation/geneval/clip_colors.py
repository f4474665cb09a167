"""Colours of objects by zero-shot classification with CLIP, as in GenEval."""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from transformers import CLIPModel, CLIPTokenizer

from grafting_core.evaluation.geneval.detections import Detection
from grafting_core.evaluation.geneval.pictures import Picture, crops
from grafting_core.specs.geneval import COLORS

TEMPLATES = (
    "a photo of a {color} {name}",
    "a photo of a {color}-colored {name}",
    "a photo of a {color} object",
)
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
BATCH = 16


class ClipColors:
    """The colour whose three descriptions are nearest to an object's crop, on average."""

    def __init__(self, model: CLIPModel, tokenizer: CLIPTokenizer) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._device = next(model.parameters()).device
        self._side = int(model.config.vision_config.image_size)
        self._classifier = lru_cache(maxsize=None)(self._make_classifier)

    def classify(self, picture: Picture, name: str, objects: Sequence[Detection]) -> list[str]:
        """Colour of each object of a class."""
        return self.colors_of(crops(picture, objects), name)

    def colors_of(self, images: Sequence[Image.Image], name: str) -> list[str]:
        """Colour of each crop of an object of a class."""
        parts = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
        return [COLORS[row] for part in parts for row in self.logits(part, name).argmax(1).tolist()]

    @torch.no_grad()
    def logits(self, images: Sequence[Image.Image], name: str) -> Tensor:
        """Logits [N, 10] of the colours, in the order of `COLORS`."""
        batch = torch.stack([pixels_of(image, self._side) for image in images])
        with self._precision():
            pooled = self._model.vision_model(batch.to(self._device)).pooler_output
            features = normalize(self._model.visual_projection(pooled), dim=-1)
            return 100 * features @ self._classifier(name)

    def _make_classifier(self, name: str) -> Tensor:
        """Directions [D, 10] of the colours: template embeddings normalised, averaged, normalised again."""
        columns = [self._direction(color, name) for color in COLORS]
        return torch.stack(columns, dim=1)

    def _direction(self, color: str, name: str) -> Tensor:
        texts = [template.format(color=color, name=name) for template in TEMPLATES]
        tokens = self._tokenizer(texts, padding=True, return_tensors="pt").to(self._device)
        pooled = self._model.text_model(**tokens).pooler_output
        mean: Tensor = normalize(self._model.text_projection(pooled), dim=-1).mean(0)
        return normalize(mean, dim=0)

    def _precision(self) -> AbstractContextManager[object]:
        """float16 where there is a GPU, as the official tool has it; a CPU computes in float32."""
        return torch.autocast("cuda", torch.float16) if self._device.type == "cuda" else nullcontext()


def pixels_of(image: Image.Image, side: int) -> Tensor:
    """Normalised pixels [3, side, side]: the short side scaled with a bicubic filter, then the centre cut."""
    width, height = image.size
    size = (side, int(side * height / width)) if width <= height else (int(side * width / height), side)
    scaled = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (round((length - side) / 2) for length in size)
    centre = np.array(scaled.crop((left, top, left + side, top + side)))
    pixels = torch.from_numpy(centre).permute(2, 0, 1).float().div(255)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (pixels - mean) / std


def load_clip_colors(folder: Path, device: torch.device | str) -> ClipColors:
    """Load CLIP and its tokenizer. Raises ValueError if the folder holds another model."""
    try:
        model, info = CLIPModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
        tokenizer = _tokenizer(folder)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(f"{folder} holds no CLIP: {' '.join(str(error).split())[:300]}") from error
    if info["missing_keys"]:
        raise ValueError(f"{folder} holds no whole CLIP; it lacks {sorted(info['missing_keys'])[0]}")
    return ClipColors(model.float().to(device).eval().requires_grad_(False), tokenizer)


def _tokenizer(folder: Path) -> CLIPTokenizer:
    """Tokenizer from vocabulary and merges alone: other files of the folder have no part in its digest."""
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    merges = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
    return CLIPTokenizer(vocab=vocabulary, merges=merges)
