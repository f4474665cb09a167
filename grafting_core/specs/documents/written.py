"""Write an experiment as the design file that repeats it."""

import json
from typing import Any

from grafting_core.specs.backbone import BackboneRef
from grafting_core.specs.design import GraftDesign
from grafting_core.specs.experiment import ExperimentSpec

RESOLVED = {"dataset", "feature_digest"}
"""Fields of plans that a submission sets itself, from the data set and the feature network that it names."""


def design_document(name: str, design: GraftDesign) -> dict[str, Any]:
    """A submission of this design with the settings of the default preset."""
    return {"name": name, "backbone": design.backbone.name, "edits": _edits(design)}


def experiment_document(spec: ExperimentSpec) -> dict[str, Any]:
    """A submission that resolves to the same experiment in a lab with the same backbone and data.

    Every setting is given, so that no preset of another version changes it. Budget and resources are left
    out: they enter no result.
    """
    plans = {
        name: getattr(spec, name).model_dump(mode="json", exclude=RESOLVED)
        for name in ("distill", "finetune", "evaluate")
    }
    data = {"dataset": spec.evaluate.dataset.name} if spec.evaluate.dataset else {}
    return {**design_document(spec.name, spec.design), **data, **plans}


def backbone_comment(backbone: BackboneRef) -> str:
    """A line for the head of a design file: it names weights, which a name alone does not."""
    return f"# The weights of {backbone.name} have the digest {backbone.digest}."


def _edits(design: GraftDesign) -> list[dict[str, Any]]:
    """One for all sites that get the same operator, and at last the pairs."""
    blocks = dict[str, list[int]]()
    for edit in design.edits:
        operator = edit.operator.model_dump(mode="json", exclude_none=True)
        given = {"replace": edit.site.slot, "with": operator, "init": edit.init}
        blocks.setdefault(json.dumps(given), []).append(edit.site.block)
    edits = [{**json.loads(given), "layers": listed} for given, listed in blocks.items()]
    if design.pairs:
        edits.append({"parallel_pairs": [list(pair.blocks) for pair in design.pairs]})
    return edits
