"""Checkpoints of the original DiT's code and of its grafts, made into a backbone's folder and scions."""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO
from zipfile import BadZipFile

from torch import Tensor

from grafting_core.backbones.checkpoint_file import weight_records
from grafting_core.backbones.checkpoint_folder import write_checkpoint
from grafting_core.backbones.imported_scions import publish_operator
from grafting_core.backbones.released_grafts import (
    ImportedCheckpoint,
    folder_name,
    grafted_place,
    import_checkpoint,
)
from grafting_core.backbones.torch_files import Record, is_zip, records_of
from grafting_core.backbones.weight_files import OpenWeights, open_weights
from grafting_core.specs.backbone import BackboneCard
from grafting_core.specs.registration import HubSource
from grafting_core.specs.site import GraftSite
from grafting_core.storage.bank import Bank
from grafting_core.training.observer import StopRequested
from workers.stages.intake import (
    BadInput,
    Roots,
    SourceFile,
    check_unchanged,
    copy_bytes,
    copy_files,
    is_copied,
    open_source,
)

CHECKPOINT = "checkpoint"
"""Folder of the staging area in which the lab's copy of a checkpoint lies while it is read."""


def convert(copy: Path, content: Path, max_bytes: int | None = None) -> ImportedCheckpoint:
    """Write the transformer in the lab's copy of a checkpoint to `content`, and delete the copy.

    Raises BadInput for an operator of stage 1 and for weights that would take more than `max_bytes`,
    ValueError as `import_checkpoint` does.
    """
    imported = import_checkpoint(copy)
    if not isinstance(imported, ImportedCheckpoint):
        raise BadInput(f"{copy.name} holds one {imported.operator.kind} operator of stage 1, no backbone")
    # More than the file's: every block gets the embedders that a file has once.
    _check_size(sum(tensor.nbytes for tensor in imported.state.values()), max_bytes)
    write_checkpoint(imported, content)
    shutil.rmtree(copy.parent)
    return imported


def copy_weights(
    file: SourceFile,
    target: Path,
    roots: Roots | None,
    max_bytes: int | None,
    tell: Callable[[int, int], None],
    stopped: Callable[[], bool],
) -> None:
    """Copy a checkpoint without the tensors that are not read of it, in whose place the copy has holes.

    A training checkpoint holds its weights once more, and twice as many numbers of its optimiser. A file that
    is no zip is copied whole. Raises BadInput, before a tensor is copied, where they have more than
    `max_bytes`, ValueError for a file that is no checkpoint, StopRequested.
    """
    if is_copied(file, target):
        return
    if roots is None or not (records := _records(file, roots)):
        _check_size(file.size, max_bytes)
        if not copy_files([file], target.parent, roots, tell, stopped):
            raise StopRequested
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(open_source(file, roots), "rb") as source, target.open("wb") as copy:
        copy.truncate(file.size)
        frame = _between([record for record in records if record.is_storage], file.size)
        for offset, size in frame:
            _copy_part(source, copy, offset, size)
        copy.flush()
        needed = weight_records(target)
        total, done = sum(record.size for record in needed), 0
        _check_size(total, max_bytes)
        for record in needed:
            if stopped():
                raise StopRequested
            tell(done, total)
            _copy_part(source, copy, record.offset, record.size)
            done += record.size
        copy.flush()
        os.fsync(copy.fileno())
        check_unchanged(file, source.fileno())
    os.utime(target, ns=(file.changed, file.changed))


def _records(file: SourceFile, roots: Roots) -> list[Record]:
    """Records of a source; none if it is no whole zip, which is found out once it has been copied."""
    with os.fdopen(open_source(file, roots), "rb") as source:
        path = Path(f"/proc/self/fd/{source.fileno()}")
        try:
            return records_of(path) if is_zip(path) else []
        except (BadZipFile, ValueError, OSError):
            return []


def _between(records: Sequence[Record], size: int) -> list[tuple[int, int]]:
    """Offsets and sizes of a file's parts around these records, which are in the order of their places."""
    starts = [0, *(record.offset + record.size for record in records)]
    ends = [*(record.offset for record in records), size]
    return [(start, end - start) for start, end in zip(starts, ends, strict=True) if end > start]


def _copy_part(source: BinaryIO, copy: BinaryIO, offset: int, size: int) -> None:
    source.seek(offset)
    copy.seek(offset)
    copy_bytes(source, copy, size)


def _check_size(size: int, max_bytes: int | None) -> None:
    if max_bytes is not None and size > max_bytes:
        raise BadInput(f"its weights take {size:,} bytes here; its owner may register {max_bytes:,} more")


def copy_of(staging: Path, source: Path, hub: HubSource | None = None) -> Path:
    """Where the copy of a checkpoint lies: under its folder's name, which says what a released graft is.

    That of a file from the hub is its repository's.
    """
    folder = hub.repository.rpartition("/")[2] if hub else folder_name(source)
    return staging / CHECKPOINT / (folder or "root") / source.name


def bank_operators(bank: Bank, card: BackboneCard, transformer: Path, made_by: str) -> list[str]:
    """Publish what was grafted into an imported backbone, each with its origin; keys of all of them."""
    origin = card.origin or card.name
    with open_weights(transformer) as weights:
        return [
            publish_operator(bank, card.ref, edit, _weights_at(edit.site, weights), origin, made_by)
            for edit in card.edits
        ]


def _weights_at(site: GraftSite, weights: OpenWeights) -> dict[str, Tensor]:
    """The operator's weights by the names inside it."""
    place = grafted_place(site)
    names = sorted(name for name in weights.shapes if name.startswith(place))
    return {name.removeprefix(place): weights.read(name) for name in names}
