"""Tensors in files with checksum, written and read one at a time.

A file is the SHA-256 of its content and then the content, in the format of safetensors. Neither writing nor
reading one holds a second copy of all tensors.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from grafting_core.storage.checksums import DIGEST_BYTES
from grafting_core.storage.storage import Storage

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Names in the format of safetensors."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}
LENGTH_BYTES = 8
MOST_HEADER_BYTES = 100_000_000
PIECE_BYTES = 2**20


def write_tensors(storage: Storage, path: str, tensors: Mapping[str, Tensor]) -> None:
    """Replace the file as a whole. Raises OSError, and leaves nothing behind, where that fails."""
    hashed = hashlib.sha256()
    for piece in _content(tensors):
        hashed.update(piece)
    storage.write_pieces(path, _with_digest(hashed.digest(), tensors))


def _with_digest(digest: bytes, tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    yield digest
    yield from _content(tensors)


def _content(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Iterator[bytes | memoryview]:
    """Header and tensors, the widest types first so that each lies where its type may."""
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name in order:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % LENGTH_BYTES)
    yield len(encoded).to_bytes(LENGTH_BYTES, "little")
    yield encoded
    for name in order:
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        if len(flat):
            yield flat.view(torch.uint8).numpy().data


def write_safetensors(
    file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a plain file of safetensors, without a checksum before it. Tensors may share memory.

    One tensor at a time is made contiguous and moved to the CPU, where it is not.
    """
    with file.open("wb") as opened:
        for piece in _content(tensors, metadata):
            opened.write(piece)


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies in the file, and what it is."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


class StoredTensors(Mapping[str, Tensor]):
    """Tensors of a verified file, each read when it is accessed.

    The file stays open, so that it can be read even if it is deleted meanwhile.
    """

    def __init__(self, file: IO[bytes], places: Mapping[str, _Place]) -> None:
        self._file, self._places = file, places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __getitem__(self, name: str) -> Tensor:
        place = self._places[name]
        if place.start == place.end:
            return torch.empty(place.shape, dtype=place.dtype)
        self._file.seek(place.start)
        data = bytearray(self._file.read(place.end - place.start))
        return torch.frombuffer(data, dtype=place.dtype).reshape(place.shape)


def read_tensors(storage: Storage, path: str) -> StoredTensors:
    """Raises FileNotFoundError; ValueError if the content does not match its digest or is not tensors."""
    file = storage.open_read(path)
    expected, hashed = file.read(DIGEST_BYTES), hashlib.sha256()
    while piece := file.read(PIECE_BYTES):
        hashed.update(piece)
    if hashed.digest() != expected:
        raise ValueError("its content does not match its digest")
    size = file.tell()
    file.seek(DIGEST_BYTES)
    length = int.from_bytes(file.read(LENGTH_BYTES), "little")
    first = DIGEST_BYTES + LENGTH_BYTES + length
    if not 2 <= length <= MOST_HEADER_BYTES or first > size:
        raise ValueError("it holds no tensors: the length of its header is wrong")
    try:
        header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        places = {name: _place(entry, first, size) for name, entry in header.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it holds no tensors: {error!r}") from error
    return StoredTensors(file, places)


def _place(entry: Mapping[str, object], first: int, size: int) -> _Place:
    """Raises ValueError for an entry that does not fit its type and shape, or the file."""
    dtype = DTYPES.get(str(entry["dtype"]))
    shape, offsets = entry["shape"], entry["data_offsets"]
    if dtype is None or not isinstance(shape, list) or not isinstance(offsets, list):
        raise ValueError(f"it holds a tensor of the unknown type {entry['dtype']}")
    start, end = (first + offset for offset in offsets)
    if end - start != math.prod(shape) * dtype.itemsize or not first <= start <= end <= size:
        raise ValueError("it holds a tensor whose size does not match its shape")
    return _Place(dtype, tuple(shape), start, end)
