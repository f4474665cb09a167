"""State of a warm screening worker: the backbone, and scions loaded from the bank on demand."""

from dataclasses import dataclass

import torch
from torch import nn

from grafting_core.backbones.registry import load_backbone
from grafting_core.evaluation.screening import Screener
from grafting_core.specs.design import Part
from grafting_core.specs.scions import ScionSpec
from grafting_core.specs.screening import ScreeningSpec, result_path
from grafting_core.storage.bank import Bank
from grafting_core.storage.checksums import write_with_digest
from grafting_core.storage.storage import Storage
from workers.contract import RunTicket
from workers.registered import make_known
from workers.stages.distill_missing import module_of


@dataclass
class ScreeningModels:
    """Evaluates hybrids of one screening and publishes each value."""

    spec: ScreeningSpec
    storage: Storage
    screener: Screener

    @classmethod
    def of(cls, ticket_json: str) -> "ScreeningModels":
        """Load the backbone. Raises ValueError if its weights are not those of the plan."""
        ticket = RunTicket.model_validate_json(ticket_json)
        assert isinstance(ticket.work, ScreeningSpec)
        spec, storage = ticket.work, Storage(ticket.storage)
        make_known(storage, ticket.registered)
        torch.set_num_threads(spec.resources.cpus_per_worker)
        device = "cuda" if torch.cuda.is_available() and spec.resources.gpus_per_worker else "cpu"
        backbone = load_backbone(spec.backbone.name, torch.device(device))
        if backbone.card.digest != spec.backbone.digest:
            raise ValueError("this worker's backbone weights differ from those of the study")

        bank = Bank(storage)

        def scion(part: Part) -> nn.Module:
            return module_of(backbone, bank, ScionSpec(backbone=spec.backbone, part=part, plan=spec.distill))

        return cls(spec, storage, Screener(backbone, spec.evaluate, scion))

    def __call__(self, hybrid: int, rung: int) -> float:
        design, on_rung = self.spec.designs[hybrid], self.spec.rungs[rung]
        screened = self.screener.evaluate(design, on_rung)
        write_with_digest(self.storage, result_path(self.spec.result_key(design, on_rung)), screened)
        return screened.value
