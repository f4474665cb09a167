"""Shards: files of safetensors whose tensors have a row for each sample, read row by row."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from grafting_core.data.npz import BadFile
from grafting_core.specs.encoding import DatasetIndex, ShardFile

OPEN_FILES = 32
"""Number of files mapped into memory at once."""
CHECKED_BYTES = 2**25
"""Bytes of rows that a check reads at once, at least one row."""
TYPES = {"U8": np.uint8, "F32": np.float32, "I64": np.int64}
"""From the narrowest on."""
Layout = Mapping[str, tuple[str, tuple[int, ...]]]
"""Tensor -> its type and the shape of one row."""
Rows = npt.NDArray[np.int64]


def layout_of(index: DatasetIndex, images: bool = False) -> Layout:
    """Layout of the shards with samples, or of those with the samples' images."""
    pixels = ("U8", (*index.image_size, index.channels))
    by_values: Mapping[str, Layout] = {
        "moments": {"mean": ("F32", index.shape), "std": ("F32", index.shape)},
        "samples": {"latents": ("F32", index.shape)},
        "pixels": {"images": pixels},
    }
    found: Layout = {"images": pixels} if images else by_values[index.values]
    return {**found, "labels": ("I64", ())} if index.classes else found


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically; several processes may write the same one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as opened:
        opened.write(content)
        opened.flush()
        os.fsync(opened.fileno())
    temporary.replace(path)


class Shards:
    """Samples 0 .. n of a folder's shards in order."""

    def __init__(self, folder: Path, files: Sequence[ShardFile], layout: Layout) -> None:
        self.folder, self.files, self.layout = folder, files, layout
        self._ends: Rows = np.cumsum([shard.rows for shard in files], dtype=np.int64)
        # Of this object, so that files are closed with it.
        self._opened = lru_cache(maxsize=OPEN_FILES)(self._open)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, name: str, rows: Rows) -> npt.NDArray[Any]:
        """Rows of a tensor in the given order. Raises BadFile for a shard that differs from the index."""
        kind, shape = self.layout[name]
        found = np.empty((len(rows), *shape), TYPES[kind])
        shards = np.searchsorted(self._ends, rows, side="right")
        for shard in np.unique(shards):
            stored = self._opened(int(shard)).get_slice(name)
            first = int(self._ends[shard]) - self.files[shard].rows
            places = np.flatnonzero(shards == shard)
            for run in np.split(places, np.flatnonzero(np.diff(rows[places]) != 1) + 1):
                start = int(rows[run[0]]) - first
                found[run] = stored[start : start + len(run)]
        return found

    def all(self, name: str) -> npt.NDArray[Any]:
        """All rows of a small tensor."""
        return self.read(name, np.arange(len(self), dtype=np.int64))

    def _open(self, shard: int) -> Any:
        return open_shard(self.folder, self.files[shard], self.layout)


def open_shard(folder: Path, shard: ShardFile, layout: Layout) -> Any:
    """Open a memory-mapped file. Raises BadFile if its tensors are not those of the layout."""
    path = folder / shard.file
    try:
        opened: Any = safe_open(path, framework="numpy")
    except (OSError, SafetensorError) as error:
        raise BadFile(f"{path} cannot be read: {str(error)[:200]}") from error
    names = sorted(opened.keys())
    if names != sorted(layout):
        raise BadFile(
            f"{path} contains {', '.join(names) or 'nothing'}; {', '.join(sorted(layout))} are needed"
        )
    for name, (kind, shape) in layout.items():
        stored = opened.get_slice(name)
        found, needed = (stored.get_dtype(), tuple(stored.get_shape())), (kind, (shard.rows, *shape))
        if found != needed:
            raise BadFile(f"{path}: {name} is {_described(*found)}; the index says {_described(*needed)}")
    return opened


def _described(kind: str, shape: tuple[int, ...]) -> str:
    return f"{kind} {' x '.join(str(side) for side in shape)}"


def check_shard(folder: Path, shard: ShardFile, layout: Layout, classes: int) -> None:
    """Verify a shard. Raises BadFile for a wrong digest, shape or label and numbers that are not finite."""
    path = folder / shard.file
    if path.is_symlink() or not path.is_file():
        raise BadFile(f"{path} is missing or not a regular file")
    with path.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != shard.sha256:
        raise BadFile(f"{path} has SHA-256 {found}; the index says {shard.sha256}")
    opened = open_shard(folder, shard, layout)
    for name, (kind, shape) in layout.items():
        if kind == "U8":
            continue
        stored = opened.get_slice(name)
        rows = max(1, CHECKED_BYTES // (np.dtype(TYPES[kind]).itemsize * prod(shape)))
        for first in range(0, shard.rows, rows):
            last = min(first + rows, shard.rows)
            _check_values(path, name, stored[first:last], classes)


def _check_values(path: Path, name: str, values: npt.NDArray[Any], classes: int) -> None:
    if name == "labels" and not ((values >= 0) & (values < classes)).all():
        wrong = int(values[(values < 0) | (values >= classes)][0])
        raise BadFile(f"{path} has the label {wrong}; there are {classes} classes, from 0")
    if not np.isfinite(values).all():
        raise BadFile(f"{path}: {name} has numbers that are not finite")
    if name == "std" and (values < 0).any():
        raise BadFile(f"{path}: {name} has standard deviations below 0")
