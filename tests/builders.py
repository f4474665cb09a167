"""Documents and specs with defaults, for tests to vary."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from safetensors.torch import save
from torch import Tensor

from grafting_core.backbones.dit import get_operator
from grafting_core.backbones.registry import Backbone
from grafting_core.specs.budget import Spend
from grafting_core.specs.design import Init, ReplaceOperator
from grafting_core.specs.documents.designs import parse_submission
from grafting_core.specs.experiment import ExperimentSpec
from grafting_core.specs.operators import KINDS
from grafting_core.specs.scions import ScionCard, ScionSpec
from grafting_core.specs.site import GraftSite
from grafting_core.storage.bank import Bank, payload_name
from grafting_core.surgery.operate import new_operator
from grafting_core.training.observer import Part

QUICK = {
    "distill": {"steps": 6, "batch_size": 16, "held_out": 16, "images": 200},
    "finetune": {"steps": 8, "batch_size": 16, "images": 200},
    "evaluate": {"samples": 40, "sampling_steps": 3, "micro_batch": 10},
}


def document(kind: str = "hyena_x", layers: Any = (1, 3), **changes: Any) -> dict[str, Any]:
    """A design that takes a second or two."""
    edit = {"replace": KINDS[kind].slots[0], "layers": list(layers), "with": {"kind": kind}}
    return {"name": "quick", "backbone": "testbed/dit-fashion", "edits": [edit], **QUICK, **changes}


def experiment(**changes: Any) -> ExperimentSpec:
    return parse_submission(document(**changes))


def replacement(kind: str, block: int = 1, init: Init = "random", **fields: Any) -> ReplaceOperator:
    """One edit of one site."""
    operator = KINDS[kind](kind=kind, **fields)
    return ReplaceOperator(site=GraftSite(block=block, slot=operator.slots[0]), operator=operator, init=init)


class MemoryCheckpoints:
    """Keeps every checkpoint; `every` step is due."""

    def __init__(self, every: int = 0) -> None:
        self.kept: dict[int, dict[str, Tensor]] = {}
        self._every, self._asked = every, 0

    def latest(self) -> tuple[int, dict[str, Tensor]] | None:
        return max(self.kept.items(), default=None, key=lambda item: item[0])

    def due(self) -> bool:
        self._asked += 1
        return bool(self._every) and self._asked % self._every == 0

    def save(self, step: int, tensors: Mapping[str, Tensor], loss: float | None = None) -> None:
        self.kept[step] = {name: value.detach().clone() for name, value in tensors.items()}


class StopAfter:
    """An observer that asks to stop once this step is done."""

    def __init__(self, step: int, seen: Callable[[int], None] = lambda step: None) -> None:
        self._step, self._seen, self._now = step, seen, 0

    def progress(self, step: int, total_steps: int, values: Mapping[str, float]) -> None:
        self._now = step
        self._seen(step)

    def parts(self, parts: Sequence[Part]) -> None:
        return None

    def stop_requested(self) -> bool:
        return self._now >= self._step


def same(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    """Equal names and equal bits."""
    return one.keys() == two.keys() and all((one[name] == two[name]).all() for name in one)


def study_document(**changes: Any) -> dict[str, Any]:
    """A study of 16 mixes that takes seconds."""
    space = {"attention": ["keep", "hyena_x"], "groups": {"attention": [[1], [3], [5], [7]]}}
    screening = {"trials": 6, "rungs": ["loss_gap", "fid20"], "reduction": 2, "loss_draws": 64}
    return {
        "name": "quick study",
        "backbone": "testbed/dit-fashion",
        "space": space,
        "objectives": [{"minimize": "fid40"}],
        "screening": screening,
        "promote": 2,
        "baselines": [],
        **QUICK,
        **changes,
    }


def stock(bank: Bank, backbone: Backbone, scions: Iterable[ScionSpec]) -> None:
    """File untrained scions; the n-th has a score of n."""
    for number, scion in enumerate(scions, 1):
        original = get_operator(backbone.transformer, scion.part.site)
        module = new_operator(scion.part, backbone.card.dims, scion.plan.seed, original)
        payload = save(module.state_dict())
        file, sha256 = payload_name(payload)
        card = ScionCard(
            key=scion.key,
            scion=scion,
            errors={"nmse": 1.0},
            scores={"replace_one/noise": float(number)},
            steps=0,
            spend=Spend(),
            made_by="test",
            made_at=0.0,
            hardware="test",
            file=file,
            sha256=sha256,
            size=len(payload),
        )
        bank.publish(card, payload)
