"""Checkpoints of the original DiT's code and of its grafts: pickles, read without running their code."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from grafting_core.backbones.torch_files import Record, check_records, is_zip, records_with, unpickled
from grafting_core.backbones.weight_files import named

State = dict[str, Tensor]
Kind = Literal["original", "ema", "training", "stage1"]
COUNTS = ("train_steps", "train_images_seen_so_far", "epoch")
"""Entries of a training checkpoint that are numbers."""
MOST_COUNTED = 10**15


@dataclass(frozen=True)
class CheckpointFile:
    """The weights in a checkpoint, by the names in the file, and the facts that the file states about them.

    `original` is a dictionary of tensors alone; `ema` one that holds the averaged weights under that name;
    `training` also has the current weights and the optimiser's, which are not read; `stage1` is one operator.
    """

    path: Path
    kind: Kind
    state: State
    figures: Mapping[str, float]
    """Numbers of the training that made it."""


def read_checkpoint(path: Path) -> CheckpointFile:
    """Read a checkpoint; tensors stay in the file until they are used.

    Of a trainer's settings and optimiser nothing is made, whatever classes they are of. The weights have
    been checked against the file's checksums, if it has any; other tensors are never read.

    Raises ValueError that names the file and what is wrong: code of the standard library, which no trainer
    stores; nothing that is a known kind of checkpoint; a tensor that is not in single precision, or not
    stored in full; damage. Whether numbers are finite is left to `check_finite`, once shapes are known to be
    right.
    """
    document = unpickled(path, placeholders=True)
    kind, state = _weights(path, document)
    _check_tensors(path, state)
    if is_zip(path):
        check_records(path, weight_records(path))
    _check_extent(path, state)
    plain = {name: value.detach() for name, value in state.items()}
    return CheckpointFile(path, kind, plain, _figures(document))


def weight_records(path: Path) -> list[Record]:
    """Where the bytes of a checkpoint's weights are in its file, which is a zip. None of them is read.

    Raises ValueError as `read_checkpoint` does.
    """
    _, state = _weights(path, unpickled(path, placeholders=True, device="meta"))
    return records_with(path, (value for value in state.values() if isinstance(value, Tensor)))


def _weights(path: Path, document: Any) -> tuple[Kind, State]:
    if not isinstance(document, dict) or not document:
        raise ValueError(f"{path} holds a {type(document).__name__}, not tensors by name")
    if all(isinstance(value, Tensor) for value in document.values()):
        return "original", dict(document)
    for name, value in document.items():
        if isinstance(value, Tensor):
            raise ValueError(f"{path} holds the tensor {name} among entries that are none")
    if isinstance(document.get("ema"), dict):
        return "ema" if document.keys() == {"ema"} else "training", dict(document["ema"])
    if isinstance(document.get("model"), dict):
        return "stage1", dict(document["model"])
    held = ", ".join(str(name) for name in document)
    raise ValueError(f"{path} holds {held}; weights are looked for under ema, or by their names alone")


def _check_tensors(path: Path, state: Mapping[Any, Any]) -> None:
    for name, value in state.items():
        if not isinstance(name, str):
            raise ValueError(f"{path}: a tensor's name is a {type(name).__name__}, not text")
        if not isinstance(value, Tensor):
            raise ValueError(f"{path}: {name} is no tensor but a {type(value).__name__}")
        if value.is_quantized or value.dtype != torch.float32:
            raise ValueError(f"{path}: {name} is stored as {value.dtype}; torch.float32 is needed")
        if value.layout != torch.strided or value.is_nested or value.is_neg():
            raise ValueError(f"{path}: {name} is sparse, nested or a view; plain tensors are needed")
        if value.device.type != "cpu":
            raise ValueError(f"{path}: {name} has no values; it was on the {value.device.type} device")


def _check_extent(path: Path, state: State) -> None:
    """Raises ValueError for tensors that repeat or share their elements: no such checkpoint has any, and a
    small file could stand for more than memory and disk can hold.
    """
    size, total = path.stat().st_size, sum(tensor.nbytes for tensor in state.values())
    if total > size:
        raise ValueError(
            f"{path} of {size:,} bytes holds tensors of {total:,} bytes, which share their elements; save "
            "contiguous copies"
        )


def check_finite(path: Path, state: State) -> None:
    """Raises ValueError naming weights that are NaN or infinite."""
    odd = [name for name, value in state.items() if not torch.isfinite(value).all()]
    if odd:
        raise ValueError(f"{path}: weights that are not finite numbers: {named(odd)}")


def _figures(document: Mapping[Any, Any]) -> dict[str, float]:
    """Counts that a card can hold; anything else under their names is left out."""
    found = {name: document.get(name) for name in COUNTS}
    return {
        name: float(value)
        for name, value in found.items()
        if isinstance(value, int | float) and 0 <= value <= MOST_COUNTED
    }
