"""Operators that were made elsewhere, published to a bank with their origin."""

import time
from collections.abc import Mapping

from safetensors.torch import save
from torch import Tensor

from grafting_core.specs.backbone import BackboneRef
from grafting_core.specs.budget import Usage
from grafting_core.specs.edits import ReplaceOperator
from grafting_core.specs.scions import ImportedScion, ScionCard
from grafting_core.storage.bank import Bank, payload_name


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
