"""Operators that were made elsewhere, published to a bank with their origin."""

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from grafting_core.backbones.diffusers_folder import shapes_of
from grafting_core.backbones.original_checkpoint import check_shapes
from grafting_core.backbones.released_grafts import ImportedOperator, import_checkpoint
from grafting_core.operators.table import build_operator
from grafting_core.specs.backbone import BackboneCard, BackboneRef
from grafting_core.specs.budget import Usage
from grafting_core.specs.edits import ReplaceOperator, check_fit
from grafting_core.specs.scions import ImportedScion, ScionCard
from grafting_core.specs.site import GraftSite
from grafting_core.storage.bank import Bank, payload_name


def import_operator(bank: Bank, card: BackboneCard, path: Path, block: int | None = None) -> str:
    """Publish the operator in a checkpoint of stage 1 for a site of a backbone; its key in the bank.

    `block` goes before the one that the file's path names. Raises ValueError, naming what is wrong, for a
    file that holds something else, and for an operator that the backbone has no place for.
    """
    found = import_checkpoint(path)
    if not isinstance(found, ImportedOperator):
        raise ValueError(f"{path} holds a whole transformer; `graft import` makes a backbone of it")
    if block is not None:
        found = replace(found, site=GraftSite(block=block, slot=found.slot))
    edit = found.edit
    check_fit((edit,), (), card.depth, card.dims)
    with torch.device("meta"):
        expected = shapes_of(build_operator(edit.operator, card.dims))
    check_shapes(path, expected, found.state)
    return publish_operator(bank, card.ref, edit, found.state, found.origin)


def publish_operator(
    bank: Bank,
    backbone: BackboneRef,
    edit: ReplaceOperator,
    state: Mapping[str, Tensor],
    origin: str,
    made_by: str = "",
) -> str:
    """Publish an operator's weights, named as those of the module that is built for it; its key in the bank.

    It belongs to the site of this backbone. What the bank has under the key already stays. `made_by` is the
    run that imports it.
    """
    payload = save({name: tensor.contiguous() for name, tensor in state.items()})
    file, sha256 = payload_name(payload)
    scion = ImportedScion(backbone=backbone, part=edit, origin=origin, weights=sha256)
    if not bank.keep_intact(scion.key):
        card = ScionCard(
            key=scion.key,
            scion=scion,
            errors={},
            steps=0,
            spend=Usage(),
            made_by=made_by,
            made_at=time.time(),
            hardware="unknown",
            file=file,
            sha256=sha256,
            size=len(payload),
        )
        bank.publish(card, payload)
    return scion.key
