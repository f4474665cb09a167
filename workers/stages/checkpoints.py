"""Checkpoints of the original DiT's code and of its grafts, made into a backbone's folder and scions."""

import shutil
from pathlib import Path

from torch import Tensor

from grafting_core.backbones.checkpoint_folder import write_checkpoint
from grafting_core.backbones.imported_scions import publish_operator
from grafting_core.backbones.released_grafts import (
    ImportedCheckpoint,
    folder_name,
    grafted_place,
    import_checkpoint,
)
from grafting_core.backbones.weight_files import OpenWeights, open_weights
from grafting_core.specs.backbone import BackboneCard
from grafting_core.specs.site import GraftSite
from grafting_core.storage.bank import Bank
from workers.stages.intake import BadInput

CHECKPOINT = "checkpoint"
"""Folder of the staging area in which the lab's copy of a checkpoint lies while it is read."""


def convert(staging: Path, source: Path, content: Path, max_bytes: int | None = None) -> ImportedCheckpoint:
    """Write the transformer in the copy of `source` to `content`, and delete the copy.

    Raises BadInput for an operator of stage 1 and for weights that would take more than `max_bytes`,
    ValueError as `import_checkpoint` does.
    """
    imported = import_checkpoint(copy_of(staging, source))
    if not isinstance(imported, ImportedCheckpoint):
        raise BadInput(f"{source.name} holds one {imported.operator.kind} operator of stage 1, no backbone")
    # More than the file's: every block gets the embedders that a file has once.
    size = sum(tensor.nbytes for tensor in imported.state.values())
    if max_bytes is not None and size > max_bytes:
        raise BadInput(f"its weights take {size:,} bytes here; its owner may register {max_bytes:,} more")
    write_checkpoint(imported, content)
    shutil.rmtree(staging / CHECKPOINT)
    return imported


def copy_of(staging: Path, source: Path) -> Path:
    """Where the copy of a checkpoint lies: under its folder's name, which says what a released graft is."""
    return staging / CHECKPOINT / (folder_name(source) or "root") / source.name


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
