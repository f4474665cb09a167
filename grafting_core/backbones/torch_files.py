"""Files that `torch.save` writes: read without running anything of them, and checked against their checksums.

Since torch 1.6 such a file is a zip: the record `data.pkl` is a pickle, and every tensor's bytes are a record
of their own, not compressed, with a CRC-32 in the zip's directory.
"""

import pickle
import re
import struct
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import torch
from torch import Tensor

LFS_POINTER = b"version https://git-lfs"
ZIP = b"PK"
REFUSED_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
"""In torch's message: the class or function that a pickle names and that is not allowed."""
STORAGE = re.compile(r"[^/]+/data/[^/]+")
"""Name of a record that holds a tensor's bytes."""
HEADER = struct.Struct("<26x2H")
"""Of a record: lengths of its name and of its extra field, which come before its bytes."""
PIECE_BYTES = 1 << 22
MOST_CLASSES = 1_000
"""Different classes that a pickle of settings and optimisers may name."""
DATA_MODULES = frozenset(
    {"argparse", "collections", "copyreg", "datetime", "decimal", "enum", "fractions", "pathlib", "typing"}
)
"""Modules of the standard library whose classes hold settings and run nothing."""
DATA_TYPES = frozenset(
    f"builtins.{each.__name__}"
    for each in (bool, bytes, dict, float, frozenset, int, list, object, range, slice, str, tuple)
)


@dataclass(frozen=True)
class Record:
    """One record of a file: where its bytes are, and their checksum."""

    name: str
    offset: int
    size: int
    crc: int

    @property
    def is_storage(self) -> bool:
        """Whether it holds a tensor's bytes."""
        return STORAGE.fullmatch(self.name) is not None


class Placeholder:
    """Stands for an object of a class that is neither imported nor run; it holds nothing of it."""

    def __new__(cls, *args: object, **kwargs: object) -> "Placeholder":
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        """Take whatever arguments the class has."""

    def __setstate__(self, state: object) -> None:
        """Drop what the object held."""


def is_zip(file: Path) -> bool:
    """Whether a file is a zip; the format before torch 1.6 is none, and has no checksums."""
    return _starts_with(file, ZIP)


def unpickled(file: Path, *, placeholders: bool = False, device: str = "cpu") -> Any:
    """Tensors and plain containers alone: whatever else a pickle names is refused before it is made.

    With `placeholders` objects of other classes, such as those of a trainer's settings, are read as a
    `Placeholder`; what the standard library could run is refused nevertheless. On the device "meta" tensors
    have no values. Everything but the tensors' bytes has been checked against its checksum.

    Raises ValueError for a file of something else, and for one that is no whole pickle.
    """
    check_no_pointer(file)
    # The format before torch 1.6 is no zip, and cannot be mapped into memory.
    zipped = is_zip(file)
    try:
        if zipped:
            check_records(file, (record for record in records_of(file) if not record.is_storage))
        with _placeholders(file, zipped) if placeholders else torch.serialization.safe_globals([]):
            return torch.load(file, map_location=device, weights_only=True, mmap=zipped and device == "cpu")
    except Damaged:
        raise
    except (
        pickle.UnpicklingError,
        RuntimeError,
        ValueError,
        EOFError,
        OSError,
        KeyError,
        BadZipFile,
    ) as error:
        raise ValueError(
            f"{file} is not a whole file of weights (truncated, another format, or a pickle of more than "
            f"tensors, which is never opened): {_reason(error)}"
        ) from error


class Damaged(ValueError):
    """A record differs from what was written."""


def check_records(file: Path, records: Iterable[Record]) -> None:
    """Read these records. Raises Damaged, naming the file and the first that differs from its CRC-32."""
    with file.open("rb") as opened:
        for record in records:
            opened.seek(record.offset)
            left, crc = record.size, 0
            while left > 0 and (piece := opened.read(min(left, PIECE_BYTES))):
                crc, left = zlib.crc32(piece, crc), left - len(piece)
            if left or crc != record.crc:
                raise Damaged(
                    f"{file} is damaged: its record {record.name[:100]} does not match its checksum; "
                    "download or copy the file again"
                )


def records_of(file: Path) -> list[Record]:
    """Every record, in the order of their places in the file.

    Raises ValueError for a compressed one, which torch never writes: of a mapped file it would take the
    compressed bytes for numbers, and a short pickle may stand for many gigabytes. Raises BadZipFile.
    """
    with ZipFile(file) as opened, file.open("rb") as raw:
        found = opened.infolist()
        packed = next((each.filename for each in found if each.compress_type != ZIP_STORED), None)
        if packed is not None:
            raise ValueError(f"its entry {packed[:100]} is compressed; torch.save writes files that are not")
        return sorted((_record(raw, each) for each in found), key=lambda record: record.offset)


def _record(raw: Any, entry: ZipInfo) -> Record:
    raw.seek(entry.header_offset)
    header = raw.read(HEADER.size)
    if len(header) < HEADER.size:
        raise BadZipFile(f"its entry {entry.filename[:100]} lies beyond its end")
    offset = entry.header_offset + HEADER.size + sum(HEADER.unpack(header))
    return Record(entry.filename, offset, entry.file_size, entry.CRC)


def records_with(file: Path, tensors: Iterable[Tensor]) -> list[Record]:
    """Records with the bytes of tensors that were read from the file on the device "meta".

    Raises ValueError for a tensor whose bytes are no record's.
    """
    at = {record.offset: record for record in records_of(file) if record.is_storage}
    found = dict[int, Record]()
    for tensor in tensors:
        storage = tensor.untyped_storage()
        offset = getattr(storage, "_checkpoint_offset", None)
        record = at.get(-1 if offset is None else offset)
        if record is None or record.size < storage.nbytes():
            raise ValueError(f"{file} has a tensor whose bytes are no record of it")
        found[record.offset] = record
    return [found[offset] for offset in sorted(found)]


@contextmanager
def _placeholders(file: Path, zipped: bool) -> Iterator[None]:
    """Context in which classes that a file names, and torch does not know, are read as placeholders."""
    names = torch.serialization.get_unsafe_globals_in_checkpoint(file) if zipped else ["argparse.Namespace"]
    if len(names) > MOST_CLASSES:
        raise ValueError(f"it names {len(names):,} classes; settings and optimisers name a few")
    with torch.serialization.safe_globals([(_stand_in(name), name) for name in names if _is_data(name)]):
        yield


def _is_data(name: str) -> bool:
    """Whether a class is one of another package's, or one of the standard library that only holds data.

    A file that names what runs something, such as `posix.system`, was not made by a trainer.
    """
    module = name.partition(".")[0]
    known = module in sys.stdlib_module_names or module in ("torch", "__builtin__")
    return module in DATA_MODULES or name in DATA_TYPES or not known


def _stand_in(name: str) -> Any:
    """A new class of placeholders; of dictionaries with defaults, which pickles fill, a plain dictionary."""
    if name == "collections.defaultdict":
        return _plain_dictionary
    return type(name.rpartition(".")[2], (Placeholder,), {"__module__": "placeholders"})


def _plain_dictionary(*default: object) -> dict[object, object]:
    return {}


def _reason(error: Exception) -> str:
    """What is wrong, without torch's advice to load such a file nevertheless."""
    text = str(error)
    if refused := REFUSED_GLOBAL.search(text):
        return f"it names {refused[1][:200]}"
    return " ".join(text.rpartition("WeightsUnpickler error: ")[2].split())[:300]


def _starts_with(file: Path, mark: bytes) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(mark)) == mark


def check_no_pointer(file: Path) -> None:
    """Raises ValueError for a file that stands for another in a repository."""
    if _starts_with(file, LFS_POINTER):
        raise ValueError(f"{file} is a Git LFS pointer, not the weights; `git lfs pull` fetches them")
