"""Documents and specs with defaults that tests can vary."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from grafting_core.backbones.base import Backbone
from grafting_core.specs.design import GraftDesign, Init, Part, ReplaceOperator
from grafting_core.specs.documents.designs import parse_submission
from grafting_core.specs.experiment import ExperimentSpec
from grafting_core.specs.operators import KINDS
from grafting_core.specs.site import GraftSite

QUICK = {
    "distill": {"steps": 6, "batch_size": 16, "held_out": 16, "images": 200},
    "finetune": {"steps": 8, "batch_size": 16, "images": 200},
    "evaluate": {"samples": 40, "sampling_steps": 3, "micro_batch": 10},
}


def document(kind: str = "hyena_x", layers: Any = (1, 3), **changes: Any) -> dict[str, Any]:
    """Make a design that takes a second or two to run."""
    edit = {"replace": KINDS[kind].slots[0], "layers": list(layers), "with": {"kind": kind}}
    return {"name": "quick", "backbone": "testbed/dit-fashion", "edits": [edit], **QUICK, **changes}


def experiment(**changes: Any) -> ExperimentSpec:
    return parse_submission(document(**changes))


def replacement(kind: str, block: int = 1, init: Init = "random", **fields: Any) -> ReplaceOperator:
    """Make one edit of one site."""
    operator = KINDS[kind](kind=kind, **fields)
    return ReplaceOperator(site=GraftSite(block=block, slot=operator.slots[0]), operator=operator, init=init)


def design_of(backbone: Backbone, *parts: Part) -> GraftDesign:
    """A design of these edits and pairs."""
    return GraftDesign.of(backbone.card.ref, parts)


def same(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    """Check that both have equal names and equal bits."""
    return one.keys() == two.keys() and all((one[name] == two[name]).all() for name in one)


def study_document(**changes: Any) -> dict[str, Any]:
    """Make a study of 16 designs that takes seconds."""
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


OFFER = {
    "replace": "attention",
    "layers": [1, 3],
    "with": [{"kind": "hyena_x"}, {"kind": "window_attention"}],
}


def fill_document(*offers: Any, **changes: Any) -> dict[str, Any]:
    """Make a bank fill of four scions, or of these offers."""
    shared = {"backbone": "testbed/dit-fashion", "distill": QUICK["distill"]}
    return {**shared, "offers": list(offers or [OFFER]), **changes}


def minimal_study(**changes: Any) -> dict[str, Any]:
    """Make a study that has only its required fields."""
    space = {"attention": ["keep", "hyena_x"]}
    return {
        "name": "a",
        "backbone": "testbed/dit-fashion",
        "space": space,
        "objectives": [{"minimize": "fid1k"}],
        **changes,
    }


FOUR_GROUPS = [[1], [3], [5], [7]]
MIXED_SPACE = {
    "attention": ["keep", "hyena_x"],
    "mlp": ["keep", {"kind": "mlp", "ratio": 3}],
    "groups": {"attention": FOUR_GROUPS, "mlp": FOUR_GROUPS},
}
TWO_RUNGS = ["loss_gap", "fid20"]
