"""Fashion-MNIST: the original IDX files for pretraining, and the part that ships with the package."""

import gzip
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

DATASET = Path("/usr/share/datasets/fashion-mnist")
"""Folder of Debian's package `dataset-fashion-mnist`."""

Bytes = npt.NDArray[np.uint8]


def read_idx(path: Path) -> Bytes:
    """Content of a gzipped IDX file of unsigned bytes. Raises ValueError for other files."""
    raw = gzip.decompress(path.read_bytes())
    if raw[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is not an IDX file of unsigned bytes")
    rank = raw[3]
    shape = np.frombuffer(raw, ">u4", count=rank, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


def read_split(split: str, folder: Path = DATASET) -> tuple[Bytes, Bytes]:
    """Images [N, 28, 28] and labels [N] of `train` (60,000) or `t10k` (10,000). Raises FileNotFoundError."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing; install the package dataset-fashion-mnist (apt)")
    return read_idx(folder / f"{split}-images-idx3-ubyte.gz"), read_idx(
        folder / f"{split}-labels-idx1-ubyte.gz"
    )


def to_pixels(images_BHW: Bytes) -> Tensor:
    """uint8 [B, 28, 28] -> float32 [B, 1, 28, 28] in [-1, 1]."""
    return torch.from_numpy(np.array(images_BHW)).float().div(127.5).sub(1).unsqueeze(1)


def to_images(pixels_BCHW: Tensor) -> Bytes:
    """float [B, 1, 28, 28] in [-1, 1] -> uint8 [B, 28, 28], rounded half up and clipped."""
    scaled = pixels_BCHW.squeeze(1).mul(127.5).add(128).clamp(0, 255)
    images: Bytes = scaled.to(torch.uint8).cpu().numpy()
    return images


def stratified(labels: Bytes, share: float, seed: int) -> npt.NDArray[np.int64]:
    """Sorted indices of the same share of every class, drawn without replacement."""
    rng = np.random.default_rng(seed)
    chosen = [
        rng.choice(np.flatnonzero(labels == label), round(share * np.sum(labels == label)), replace=False)
        for label in np.unique(labels)
    ]
    return np.sort(np.concatenate(chosen))
