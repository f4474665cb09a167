"""Whole files in shared storage: a folder, NFS or an object store, by one fsspec URI."""

import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem
from pydantic import BaseModel

from grafting_core.storage.failpoints import failpoint

M = TypeVar("M", bound=BaseModel)
COPY_BYTES = 2**20
UNFINISHED = ".tmp-"


class Storage:
    """Reads and writes whole files under a root. A reader never sees a partial file.

    Paths are relative, with forward slashes. Raises ValueError for paths that could leave the root.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        # A plain path is used as it is: in fsspec `::` would join two addresses.
        plain = "://" not in uri
        self._filesystem, root = (
            (LocalFileSystem(), LocalFileSystem._strip_protocol(uri)) if plain else fsspec.core.url_to_fs(uri)
        )
        self._root = str(root).rstrip("/")
        self.is_local = "file" in _protocols(self._filesystem)

    def _full(self, path: str) -> str:
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or ".." in parts or "\0" in path or "\\" in path:
            raise ValueError(f"{path!r} is not a path inside the storage; use relative names without '..'")
        return f"{self._root}/{PurePosixPath(path)}"

    def read_bytes(self, path: str) -> bytes:
        """Content of a file. Raises FileNotFoundError."""
        content: bytes = self._filesystem.cat_file(self._full(path))
        return content

    def open_read(self, path: str) -> IO[bytes]:
        """Open file for reading parts of it. Raises FileNotFoundError."""
        file: IO[bytes] = self._filesystem.open(self._full(path), "rb")
        return file

    def read_end(self, path: str, size: int) -> bytes:
        """The last `size` bytes, or all if there are fewer. Raises FileNotFoundError."""
        content: bytes = self._filesystem.cat_file(self._full(path), start=-size)
        return content

    def write_bytes(self, path: str, data: bytes) -> None:
        """Replace the file atomically. Raises OSError, such as on a full disk, and leaves no file behind."""
        full = self._full(path)
        if self.is_local:
            _write_local(Path(full), [data])
        else:
            self._filesystem.pipe_file(full, data)

    def write_file(self, path: str, local: Path) -> None:
        """`write_bytes` for content that does not fit into memory: copies a file of this machine."""
        full = self._full(path)
        if self.is_local:
            _write_local(Path(full), _pieces_of(local))
        else:
            self._filesystem.put_file(str(local), full)

    def write_pieces(self, path: str, pieces: Iterable[bytes | memoryview]) -> None:
        """`write_bytes` for what does not fit into memory: pieces that are made as they are written."""
        full = self._full(path)
        if self.is_local:
            _write_local(Path(full), pieces)
        else:
            with self._filesystem.open(full, "wb") as file:
                for piece in pieces:
                    file.write(piece)

    def pieces(self, path: str, size: int = 2**20, start: int = 0) -> Iterator[bytes]:
        """Content from a byte on, `size` bytes at a time. Raises FileNotFoundError before the first piece."""
        with self._filesystem.open(self._full(path), "rb") as file:
            file.seek(start)
            while piece := file.read(size):
                yield piece

    def exists(self, path: str) -> bool:
        return bool(self._filesystem.exists(self._full(path)))

    def names(self, folder: str) -> list[str]:
        """Names in a folder, sorted; empty if it does not exist. Unfinished files are left out."""
        full = self._full(folder)
        self._filesystem.invalidate_cache()
        if not self._filesystem.isdir(full):
            return []
        return sorted(name for name in self._listed(full) if not name.startswith(UNFINISHED))

    def unfinished(self, folder: str) -> list[str]:
        """Names of unfinished files in a folder: their writer is still at work, or has died."""
        full = self._full(folder)
        self._filesystem.invalidate_cache()
        if not self._filesystem.isdir(full):
            return []
        return sorted(name for name in self._listed(full) if name.startswith(UNFINISHED))

    def _listed(self, full: str) -> Iterator[str]:
        return (str(entry).rsplit("/", 1)[-1] for entry in self._filesystem.ls(full, detail=False))

    def delete(self, path: str) -> None:
        """Remove a file; no error if it does not exist."""
        if self.exists(path):
            self._filesystem.rm_file(self._full(path))

    def delete_all(self, folder: str) -> None:
        """Remove a folder with everything in it; no error if it does not exist."""
        if self.exists(folder):
            self._filesystem.rm(self._full(folder), recursive=True)

    def size(self, path: str) -> int:
        """Size of a file in bytes. Raises FileNotFoundError."""
        return int(self._filesystem.size(self._full(path)))

    def move(self, path: str, to: str) -> None:
        """Rename a file within the storage."""
        self._filesystem.mv(self._full(path), self._full(to))

    def local_path(self, path: str) -> Path:
        """Path of a file on this machine. Raises ValueError for remote storage."""
        if not self.is_local:
            raise ValueError(f"{self.uri} is not on this machine")
        return Path(self._full(path))

    def read_model(self, path: str, model: type[M]) -> M:
        """Parse a JSON file. Raises FileNotFoundError or pydantic's ValidationError."""
        return model.model_validate_json(self.read_bytes(path))

    def write_model(self, path: str, value: BaseModel) -> None:
        self.write_bytes(path, value.model_dump_json().encode())


def _protocols(filesystem: fsspec.AbstractFileSystem) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def _pieces_of(file: Path) -> Iterator[bytes]:
    with file.open("rb") as source:
        while piece := source.read(COPY_BYTES):
            yield piece


def _write_local(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Write a temporary file, sync, rename; then sync the folder, so that the name is durable too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{UNFINISHED}{uuid.uuid4().hex}")
    try:
        failpoint("publish/before")
        with temporary.open("wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        failpoint("publish/written")
        temporary.replace(path)
        failpoint("publish/after")
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
