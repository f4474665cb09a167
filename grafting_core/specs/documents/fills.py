"""Parse a document that fills the bank: operators for slots of selected blocks."""

import json
from typing import Annotated, Any

from pydantic import Field, ValidationError

from grafting_core.specs.base import Frozen
from grafting_core.specs.budget import Budget
from grafting_core.specs.design import Init
from grafting_core.specs.dims import Slot
from grafting_core.specs.documents.data import check_budget
from grafting_core.specs.documents.designs import parse_submission
from grafting_core.specs.documents.errors import Problem, SpecError
from grafting_core.specs.documents.explain import refused
from grafting_core.specs.documents.layers import LayerSelector
from grafting_core.specs.documents.lookup import find_card
from grafting_core.specs.documents.parsing import check_plain
from grafting_core.specs.experiment import ExperimentSpec, Resources, scions_of
from grafting_core.specs.filling import FillSpec
from grafting_core.specs.naming import Name, Word
from grafting_core.specs.operators import OperatorSpec
from grafting_core.specs.plans import DistillPlan
from grafting_core.specs.presets import PresetName

MAX_OPERATORS = 200
"""Limit over all offers together, before multiplying by their blocks."""


class OperatorChoices(Frozen):
    """Operators to distil for one slot of the selected blocks."""

    replace: Slot
    layers: LayerSelector
    with_: Annotated[tuple[OperatorSpec, ...], Field(alias="with", max_length=100)]
    init: Init = "random"


class FillDocument(Frozen):
    """A fill as a user writes it: a backbone, operators by site, and how to distil them."""

    name: Name = "fill"
    backbone: Word
    dataset: Word | None = None
    offers: Annotated[tuple[OperatorChoices, ...], Field(max_length=200)]
    preset: PresetName = "demo"
    # Only fields that were set override the preset.
    distill: DistillPlan = DistillPlan()
    budget: Budget = Budget()
    resources: Resources = Resources()


def parse_fill(document: Any) -> FillSpec:
    """Validate a plain document and resolve it. Raises SpecError as `parse_submission` does."""
    check_plain(document)
    try:
        request = FillDocument.model_validate_json(json.dumps(document))
    except ValidationError as error:
        raise refused(error, document, FillDocument) from error
    check_budget(request.budget, find_card(request.backbone))
    scions = {scion.key: scion for spec in _designs(request, document) for scion in scions_of(spec)}
    return FillSpec(
        name=request.name, scions=tuple(scions.values()), budget=request.budget, resources=request.resources
    )


def _designs(request: FillDocument, document: Any) -> list[ExperimentSpec]:
    """Each operator of each offer as a design of its own, so that the rules for designs apply."""
    _check_size(request)
    names = ("backbone", "dataset", "preset", "distill")
    shared = {name: document[name] for name in names if name in document}
    found: list[ExperimentSpec] = []
    problems: dict[str, Problem] = {}
    empty = [f"/offers/{row}/with" for row, offer in enumerate(request.offers) if not offer.with_]
    for place in empty or ([] if request.offers else ["/offers"]):
        problems[place] = Problem(pointer=place, code="out-of-range", message="name at least one")
    for row, offer in enumerate(document["offers"]):
        for column, operator in enumerate(offer["with"]):
            edit = {**offer, "with": operator}
            try:
                found.append(parse_submission({**shared, "name": request.name, "edits": [edit]}))
            except SpecError as error:
                moved = (_moved(problem, row, column) for problem in error.problems)
                problems |= {problem.pointer: problem for problem in moved}
    if problems:
        raise SpecError(list(problems.values()))
    return found


def _check_size(request: FillDocument) -> None:
    count = sum(len(offer.with_) for offer in request.offers)
    if count > MAX_OPERATORS:
        message = f"{count} operators in all; one pass takes at most {MAX_OPERATORS}, fill several times"
        raise SpecError([Problem(pointer="/offers", code="too-many", message=message)])


def _moved(problem: Problem, row: int, column: int) -> Problem:
    """Move an error from its place in the design to its place in the fill document."""
    place = problem.pointer.replace("/edits/0/with", f"/offers/{row}/with/{column}")
    return problem.model_copy(update={"pointer": place.replace("/edits/0", f"/offers/{row}")})
