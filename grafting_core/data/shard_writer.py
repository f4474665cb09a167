"""Writing shards row by row, so that memory holds one batch of any shard."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from grafting_core.data.shards import TYPES
from grafting_core.specs.encoding import ShardFile

NAMES = {np.dtype(kind): name for name, kind in TYPES.items()}
ORDER = tuple(TYPES)[::-1]
"""Of the tensors in a file by type, as the safetensors library writes them: the widest first."""
Rows = Mapping[str, npt.NDArray[Any]]


class ShardWriter:
    """A file of safetensors of `rows` samples that appears under its name once it is complete.

    Equal rows give equal bytes, those that the safetensors library would write.
    """

    def __init__(self, folder: Path, file: str, rows: int) -> None:
        self.path, self.rows = folder / file, rows
        self._temporary = self.path.with_name(f".{file}.{os.getpid()}")
        self._starts, self._done = dict[str, int](), 0
        self._file = self._temporary.open("w+b")

    def append(self, tensors: Rows) -> None:
        """Write the next rows of every tensor; all calls give the same tensors."""
        if not self._starts:
            self._begin(tensors)
        count = len(next(iter(tensors.values())))
        for name, tensor in tensors.items():
            row_bytes = tensor.nbytes // max(1, count)
            self._file.seek(self._starts[name] + self._done * row_bytes)
            self._file.write(np.ascontiguousarray(tensor).data)
        self._done += count

    def _begin(self, tensors: Rows) -> None:
        entries, end = dict[str, dict[str, Any]](), 0
        for name in sorted(tensors, key=lambda name: (ORDER.index(NAMES[tensors[name].dtype]), name)):
            tensor, start = tensors[name], end
            shape = (self.rows, *tensor.shape[1:])
            end += tensor.dtype.itemsize * int(np.prod(shape, dtype=np.int64))
            entries[name] = {
                "dtype": NAMES[tensor.dtype],
                "shape": list(shape),
                "data_offsets": [start, end],
            }
            self._starts[name] = start
        header = json.dumps(entries, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)
        self._file.write(len(header).to_bytes(8, "little") + header)
        self._starts = {name: 8 + len(header) + start for name, start in self._starts.items()}

    def finish(self) -> ShardFile:
        """Publish the file. Raises ValueError if rows are missing."""
        if self._done != self.rows:
            raise ValueError(f"{self.path} has {self._done} of {self.rows} rows")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.seek(0)
        sha256 = hashlib.file_digest(self._file, "sha256").hexdigest()
        size = self._file.tell()
        self._file.close()
        self._temporary.replace(self.path)
        return ShardFile(file=self.path.name, rows=self.rows, sha256=sha256, size=size)

    def discard(self) -> None:
        """Close and delete what is not finished; afterwards it does nothing."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)
