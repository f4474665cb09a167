"""Untrusted `.npz` files: checked before they are read, never unpickled, images streamed."""

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt

MAX_ARRAY_BYTES = 2**31
"""Limit for an array that is read whole: statistics of 2048 features take 32 MiB."""
MAX_STREAM_BYTES = 2**37
"""Limit for streamed images: 50,000 of 512 x 512 take 37 GiB."""
MAX_RATIO = 200
"""Limit for large arrays: compressed images shrink to a half, blank ones to a thousandth."""
SMALL_BYTES = 2**28
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class BadFile(ValueError):
    """An external file that cannot be used; the text says which and why."""


@dataclass(frozen=True)
class Member:
    """Header of an array, read before its content."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        size = self.dtype.itemsize
        for side in self.shape:
            size *= side
        return size


class NpzFile:
    """Arrays of a zip by name. Every method raises BadFile with the file and the reason."""

    def __init__(self, path: Path, content: IO[bytes] | None = None) -> None:
        """`content`: bytes that are already in memory; `path` is then only their name."""
        self.path = path
        try:
            self._zip = zipfile.ZipFile(content or path)
        except FileNotFoundError as error:
            raise BadFile(f"{path} does not exist") from error
        except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
            raise self._bad(f"is not an .npz file, or is truncated ({error})") from error
        names = [info.filename for info in self._zip.infolist()]
        if len(names) != len(set(names)):
            raise self._bad("has the same name twice")
        self.names = tuple(name.removesuffix(".npy") for name in names)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zip.close()

    def _bad(self, what: str) -> BadFile:
        return BadFile(f"{self.path} {what}")

    def member(self, name: str) -> Member:
        """Shape and type, checked against the size in the zip's directory."""
        with self._open(name) as stream:
            return self._header(name, stream)

    def _open(self, name: str) -> IO[bytes]:
        if name not in self.names:
            raise self._bad(f"has no array {name!r}; it has {', '.join(self.names[:10]) or 'none'}")
        try:
            return self._zip.open(f"{name}.npy")
        except (KeyError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
            raise self._bad(f"cannot be read at {name!r} ({error})") from error

    def _header(self, name: str, stream: IO[bytes]) -> Member:
        info = self._zip.getinfo(f"{name}.npy")
        try:
            version = np.lib.format.read_magic(stream)
            shape, fortran, dtype = HEADERS[version](stream)
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile, OSError) as error:
            raise self._bad(f"has no readable array header at {name!r} ({error})") from error
        member = Member(shape, dtype)
        if dtype.hasobject:
            raise self._bad(f"has Python objects at {name!r}, which are never unpickled; save plain arrays")
        if fortran and len(shape) > 1:
            raise self._bad(f"has {name!r} in Fortran order; save numpy.ascontiguousarray of it")
        if member.nbytes != info.file_size - stream.tell():
            raise self._bad(f"has {info.file_size - stream.tell()} bytes at {name!r}, not {member.nbytes}")
        self._check_size(name, info)
        return member

    def _check_size(self, name: str, info: zipfile.ZipInfo) -> None:
        if info.file_size > MAX_STREAM_BYTES:
            raise self._bad(f"has {info.file_size} bytes at {name!r}; at most {MAX_STREAM_BYTES} are allowed")
        ratio = info.file_size / max(1, info.compress_size)
        if ratio > MAX_RATIO and info.file_size > SMALL_BYTES:
            raise self._bad(f"unpacks {name!r} to {ratio:.0f} times its size: a zip bomb, or blank images")

    def read(self, name: str) -> npt.NDArray[Any]:
        """The whole array."""
        with self._open(name) as stream:
            member = self._header(name, stream)
            if member.nbytes > MAX_ARRAY_BYTES:
                raise self._bad(
                    f"has {member.nbytes} bytes at {name!r}; at most {MAX_ARRAY_BYTES} are read at once"
                )
            return self._rows(name, stream, member, member.shape)

    def batches(self, name: str, rows: int) -> Iterator[npt.NDArray[Any]]:
        """The array in order, `rows` of its first dimension at a time; memory holds one batch."""
        with self._open(name) as stream:
            member = self._header(name, stream)
            for start in range(0, member.shape[0], rows):
                count = min(rows, member.shape[0] - start)
                yield self._rows(name, stream, member, (count, *member.shape[1:]))

    def _rows(self, name: str, stream: IO[bytes], member: Member, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        size = Member(shape, member.dtype).nbytes
        try:
            raw = stream.read(size)
        except (zipfile.BadZipFile, EOFError, OSError, zipfile.zlib.error) as error:  # type: ignore[attr-defined]
            raise self._bad(f"is damaged at {name!r} ({error})") from error
        if len(raw) != size:
            raise self._bad(f"ends within {name!r}")
        return np.frombuffer(raw, member.dtype).reshape(shape).copy()
