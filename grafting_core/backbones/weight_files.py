"""Weights of one network as diffusers stores them: safetensors or `.bin`, in one file or in shards."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from grafting_core.backbones.torch_files import (
    check_no_pointer,
    check_records,
    is_zip,
    records_of,
    unpickled,
)
from grafting_core.specs.canonical import digest
from grafting_core.specs.features import digest_of_path

CONFIG = "config.json"
SUFFIXES = ("safetensors", "bin")
"""In the order in which they are preferred."""
NAME = re.compile(
    r"diffusion_pytorch_model(?:\.(?P<variant>\w+))?(?:-(?P<shard>\d+)-of-(?P<shards>\d+))?"
    r"(?:\.(?P<late>\w+))?\.(?P<suffix>safetensors|bin)"
)
READABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
RECOMPUTED = frozenset({"pos_embed.pos_embed"})
"""Tensors that diffusers makes itself whatever a file holds."""
NAMED = 5
MAX_SHARED = 100
"""Names of one tensor in a `.bin` file, as of embedders that all blocks share."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class WeightFiles:
    """Files that together hold a network, all of one format and precision."""

    files: tuple[Path, ...]
    suffix: str
    variant: str | None
    """`fp16` of `diffusion_pytorch_model.fp16.safetensors`."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self.files)


def find_weights(folder: Path) -> WeightFiles:
    """The network's files: safetensors before `.bin`, full precision before variants.

    Raises ValueError where there are none or one of several shards is missing.
    """
    groups: dict[tuple[int, str], list[Path]] = defaultdict(list)
    for file in sorted(folder.iterdir()) if folder.is_dir() else []:
        if match := NAME.fullmatch(file.name):
            variant = match["variant"] or match["late"] or ""
            groups[SUFFIXES.index(match["suffix"]), variant].append(file)
    if not groups:
        raise ValueError(f"{folder} has no weights; diffusion_pytorch_model.safetensors or .bin is needed")
    (suffix, variant), files = min(groups.items())
    whole = [file for file in files if "-of-" not in file.name]
    return WeightFiles(tuple(whole or _shards(files)), SUFFIXES[suffix], variant or None)


def _shards(files: list[Path]) -> list[Path]:
    matches = [NAME.fullmatch(file.name) for file in files]
    numbers = [(int(match["shard"]), int(match["shards"])) for match in matches if match is not None]
    total = max(shards for _, shards in numbers)
    missing = sorted(set(range(1, total + 1)) - {shard for shard, _ in numbers})
    if missing:
        raise ValueError(f"{files[0].parent} lacks shard {missing[0]} of {total}")
    if len(files) != total:
        raise ValueError(f"{files[0].parent} has shards of several sets: {named([f.name for f in files])}")
    return files


class OpenWeights:
    """Tensors by name, read one at a time."""

    def __init__(self, folder: Path, sources: Mapping[str, "_Source"]) -> None:
        self.folder = folder
        self._sources = sources

    @property
    def shapes(self) -> dict[str, Shape]:
        return {name: source.shape(name) for name, source in self._sources.items()}

    def read(self, name: str) -> Tensor:
        """A copy in single precision. Raises ValueError for a tensor that is no float or is not finite."""
        stored = self._sources[name].tensor(name)
        if stored.dtype not in READABLE:
            raise ValueError(f"{self.folder}: {name} is stored as {stored.dtype}; floats are needed")
        tensor = stored.to(torch.float32, copy=True)
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{self.folder}: weights that are not finite numbers: {name}")
        return tensor


@contextmanager
def open_weights(folder: Path) -> Iterator[OpenWeights]:
    """The weights in a folder, of which nothing is unpickled but tensors.

    Raises ValueError for a file that is truncated, is something else than its name says, or has a tensor
    that another has too.
    """
    sources: dict[str, _Source] = {}
    for file in find_weights(folder).files:
        source = _SafetensorsFile(file) if file.suffix == ".safetensors" else _BinFile(file)
        twice = sources.keys() & set(source.names)
        if twice:
            raise ValueError(f"{file} holds {named(sorted(twice))}, which another shard holds too")
        sources |= dict.fromkeys(source.names, source)
    try:
        yield OpenWeights(folder, sources)
    finally:
        sources.clear()


class _SafetensorsFile:
    def __init__(self, file: Path) -> None:
        check_no_pointer(file)
        self._file = file
        try:
            self._opened = self._open()
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{file} is not a whole safetensors file (truncated, or another format): {_line(error)}"
            ) from error
        self.names: Collection[str] = [*self._opened.keys()]

    def shape(self, name: str) -> Shape:
        return tuple(self._opened.get_slice(name).get_shape())

    def tensor(self, name: str) -> Tensor:
        """A view of the file, of which only this tensor is in memory while it is used."""
        tensor: Tensor = self._open().get_tensor(name)
        return tensor

    def _open(self) -> Any:
        opened: Any = safe_open
        return opened(self._file, framework="pt")


class _BinFile:
    def __init__(self, file: Path) -> None:
        self._state = unpickled(file)
        if is_zip(file):
            check_records(file, (record for record in records_of(file) if record.is_storage))
        if not isinstance(self._state, dict) or not all(isinstance(x, Tensor) for x in self._state.values()):
            raise ValueError(f"{file} does not hold tensors by name alone, as a file of weights does")
        _check_extent(file, self._state)
        self.names: Collection[str] = list(self._state)

    def shape(self, name: str) -> Shape:
        return tuple(self._state[name].shape)

    def tensor(self, name: str) -> Tensor:
        tensor: Tensor = self._state[name]
        return tensor


_Source = _SafetensorsFile | _BinFile


def _check_extent(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError for tensors that repeat their elements to a size far beyond the file's."""
    size, total = file.stat().st_size, sum(tensor.nbytes for tensor in tensors.values())
    wide = next((name for name, tensor in tensors.items() if tensor.nbytes > size), None)
    if wide is not None or total > MAX_SHARED * size:
        raise ValueError(
            f"{file} of {size:,} bytes holds tensors of {total:,} bytes"
            + (f", {wide} alone {tensors[wide].nbytes:,}" if wide else "")
            + "; save contiguous copies"
        )


def check_names(folder: Path, expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> None:
    """Raises ValueError naming tensors that are missing, superfluous or of another shape."""
    other = [name for name in expected.keys() & found.keys() if expected[name] != found[name]]
    parts = {
        "lacks": expected.keys() - found.keys(),
        "has unexpected": found.keys() - expected.keys() - RECOMPUTED,
        "has in another shape": other,
    }
    wrong = [f"{what} {named(sorted(names))}" for what, names in parts.items() if names]
    if wrong:
        raise ValueError(f"{folder}: the weights do not match its config.json: {'; '.join(wrong)}")


def files_of(folder: Path) -> list[Path]:
    """What is read of a part's folder: its config and its weights."""
    return [folder / CONFIG, *find_weights(folder).files]


def part_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of what is read of a part's folder."""
    return digest({file.name: digest_of_path(file) for file in files_of(folder)})


def digest_of_weights(folder: Path) -> str:
    """As `part_digest`; of safetensors over all such files, which published fingerprints hold."""
    return digest_of_path(folder) if find_weights(folder).suffix == "safetensors" else part_digest(folder)


def named(names: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
