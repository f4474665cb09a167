"""Emoji as tiles for drawing scenes, and the ten tints."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d

from grafting_core.testbed.emoji.vocabulary import CLASSES, COLOURS

TILE = 128
MARGIN = 2
"""Empty pixels around an emoji's longer side."""
COLUMNS = 8
LEAST_RANGE = 0.4
"""Range of luminance that a tint maps to its ramp; an emoji with less contrast gets the lighter end."""
LUMINANCE = torch.tensor([0.299, 0.587, 0.114])

RAMPS: Mapping[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "red": ((0.35, 0.0, 0.0), (1.0, 0.35, 0.3)),
    "orange": ((0.55, 0.2, 0.0), (1.0, 0.65, 0.1)),
    "yellow": ((0.62, 0.5, 0.0), (1.0, 0.96, 0.25)),
    "green": ((0.0, 0.25, 0.05), (0.35, 0.9, 0.35)),
    "blue": ((0.0, 0.05, 0.42), (0.3, 0.52, 1.0)),
    "purple": ((0.2, 0.0, 0.34), (0.68, 0.32, 0.95)),
    "pink": ((0.78, 0.2, 0.48), (1.0, 0.74, 0.88)),
    "brown": ((0.18, 0.08, 0.02), (0.58, 0.36, 0.18)),
    "black": ((0.0, 0.0, 0.0), (0.33, 0.33, 0.33)),
    "white": ((0.7, 0.7, 0.7), (1.0, 1.0, 1.0)),
}
"""Dark and light end of every tint."""


@dataclass(frozen=True)
class Atlas:
    """Tiles of premultiplied RGBA at one size, each emoji's extent, and tints as matrices."""

    tiles: Tensor
    """[classes, 4, side, side] in [0, 1]."""
    extents: Tensor
    """Width and height of every emoji as a share of its longer side."""
    tints: Tensor
    """[classes, colours + 1, 3, 4]: premultiplied RGBA to premultiplied RGB; the last keeps the colours."""

    def half(self) -> "Atlas":
        """The same tiles at half the size."""
        return Atlas(avg_pool2d(self.tiles, 2), self.extents, self.tints)

    def to(self, device: torch.device | str) -> "Atlas":
        """The atlas on another device."""
        return Atlas(self.tiles.to(device), self.extents.to(device), self.tints.to(device))


def load_atlas(file: Path) -> Atlas:
    """Read an atlas from an image of tiles in rows of COLUMNS, in the order of CLASSES."""
    with Image.open(file) as picture:
        pixels = torch.from_numpy(np.array(picture.convert("RGBA"))).float() / 255
    rows = -(-len(CLASSES) // COLUMNS)
    if pixels.shape != (rows * TILE, COLUMNS * TILE, 4):
        raise ValueError(f"{file} has {tuple(pixels.shape)} values; {rows} rows of {COLUMNS} tiles expected")
    tiles = pixels.view(rows, TILE, COLUMNS, TILE, 4).permute(0, 2, 4, 1, 3).flatten(0, 1)[: len(CLASSES)]
    premultiplied = torch.cat([tiles[:, :3] * tiles[:, 3:], tiles[:, 3:]], 1).contiguous()
    return Atlas(premultiplied, _extents(tiles[:, 3]), _tints(tiles))


def _extents(alpha_CHW: Tensor) -> Tensor:
    visible = alpha_CHW > 0.5
    sizes = torch.stack([visible.any(1).sum(1), visible.any(2).sum(1)], 1)
    return sizes / (TILE - 2 * MARGIN)


def _tints(tiles_CHW: Tensor) -> Tensor:
    """Matrices that map luminance, stretched to the emoji's own range, from a dark to a light colour."""
    matrices = torch.zeros(len(tiles_CHW), len(COLOURS) + 1, 3, 4)
    matrices[:, -1, :, :3] = torch.eye(3)
    for number, tile in enumerate(tiles_CHW):
        luminance = torch.einsum("c,chw->hw", LUMINANCE, tile[:3])[tile[3] > 0.5]
        low, high = (float(luminance.quantile(share)) for share in (0.02, 0.98))
        low = min(low, high - LEAST_RANGE)
        for index, colour in enumerate(COLOURS):
            dark, light = (torch.tensor(stop) for stop in RAMPS[colour])
            slope = (light - dark) / (high - low)
            matrices[number, index, :, :3] = torch.outer(slope, LUMINANCE)
            matrices[number, index, :, 3] = dark - slope * low
    return matrices
