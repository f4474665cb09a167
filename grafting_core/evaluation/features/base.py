"""Feature networks: protocol, features, and their extraction from sets of images."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from grafting_core.data.images import Images

Rows = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Features:
    """float32 rows, one per image: `pool` [N, D] for FID, PRDC, KID; `spatial` [N, S] for sFID, flattened
    in the order height, width, channel; `logits` [N, K] for the inception score.
    """

    pool: Rows
    spatial: Rows | None = None
    logits: Rows | None = None

    def __len__(self) -> int:
        return len(self.pool)

    def first(self, count: int) -> "Features":
        """Features of the first `count` images."""
        parts = (None if part is None else part[:count] for part in (self.spatial, self.logits))
        return Features(self.pool[:count], *parts)


class FeatureNetwork(Protocol):
    """A frozen network; `digest` is the SHA-256 of its weights."""

    name: str
    digest: str
    device: torch.device

    def __call__(self, images_NHWC: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Features, spatial features and logits of uint8 images with three channels."""


def extract(network: FeatureNetwork, images: Images, micro_batch: int) -> Features:
    """Features of uint8 images [N, H, W] or [N, H, W, 3], each forward with the same shape.

    The last batch is padded: the batch size of a forward changes the low bits of the result.
    """
    parts = [
        _features_of(network, images[start : start + micro_batch], micro_batch)
        for start in range(0, len(images), micro_batch)
    ]
    return concat(parts)


@torch.no_grad()
def _features_of(network: FeatureNetwork, images: Images, micro_batch: int) -> Features:
    pixels = torch.from_numpy(np.ascontiguousarray(images))
    pixels = pixels if pixels.dim() == 4 else pixels.unsqueeze(3).expand(-1, -1, -1, 3)
    padded = torch.cat([pixels, pixels[-1:].expand(micro_batch - len(pixels), *pixels.shape[1:])])
    parts = network(padded.to(network.device))
    return Features(*(None if part is None else _rows(part, len(images)) for part in parts))  # type: ignore[arg-type]


def _rows(part: Tensor, count: int) -> Rows:
    rows: Rows = part[:count].float().cpu().numpy()
    return rows


def concat(parts: Iterable[Features]) -> Features:
    """Features of all parts in order. Raises ValueError for no parts."""
    listed = list(parts)
    columns = zip(*((part.pool, part.spatial, part.logits) for part in listed), strict=True)
    pool, spatial, logits = (_stacked(column) for column in columns)
    assert pool is not None
    return Features(pool, spatial, logits)


def _stacked(column: tuple[Rows | None, ...]) -> Rows | None:
    rows = [part for part in column if part is not None]
    return np.concatenate(rows) if len(rows) == len(column) else None


def spatial_rows(maps_NCHW: Tensor, channels: int = 7) -> Tensor:
    """First channels of a map in the order height, width, channel, as in published statistics."""
    return maps_NCHW[:, :channels].permute(0, 2, 3, 1).flatten(1)
