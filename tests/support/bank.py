"""Fill a bank with scions without training."""

from collections.abc import Iterable

from safetensors.torch import save

from grafting_core.backbones.base import Backbone
from grafting_core.specs.budget import Usage
from grafting_core.specs.scions import ScionCard, ScionSpec
from grafting_core.storage.bank import Bank, payload_name
from grafting_core.surgery.operate import new_operator


def stock(bank: Bank, backbone: Backbone, scions: Iterable[ScionSpec]) -> None:
    """Store untrained scions; the n-th has score n."""
    for number, scion in enumerate(scions, 1):
        module = new_operator(backbone, scion.part, scion.plan.seed)
        payload = save(module.state_dict())
        file, sha256 = payload_name(payload)
        card = ScionCard(
            key=scion.key,
            scion=scion,
            errors={"nmse": 1.0},
            scores={"replace_one/noise": float(number)},
            steps=0,
            spend=Usage(),
            made_by="test",
            made_at=0.0,
            hardware="test",
            file=file,
            sha256=sha256,
            size=len(payload),
        )
        bank.publish(card, payload)


def deposit(
    bank: Bank, scion: ScionSpec, made_at: float = 0.0, size: int = 1000, made_by: str = "r1"
) -> ScionCard:
    payload = bytes(size)
    file, sha256 = payload_name(payload)
    card = ScionCard(
        key=scion.key,
        scion=scion,
        errors={"nmse": 0.25, "nmse/t0-249": 0.5},
        steps=6,
        spend=Usage(device_seconds=2.0),
        made_by=made_by,
        made_at=made_at,
        hardware="h",
        file=file,
        sha256=sha256,
        size=size,
    )
    bank.publish(card, payload)
    return card
