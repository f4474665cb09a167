"""Parse a document that fills the bank: operators for slots of selected blocks."""

import json
from typing import Annotated, Any

from pydantic import Field, ValidationError

from grafting_core.specs.base import Frozen
from grafting_core.specs.budget import Budget
from grafting_core.specs.design import Init
from grafting_core.specs.dims import Slot
from grafting_core.specs.documents.designs import parse_submission
from grafting_core.specs.documents.errors import Problem, SpecError
from grafting_core.specs.documents.explain import refused
from grafting_core.specs.documents.layers import LayerSelector
from grafting_core.specs.documents.parsing import check_plain
from grafting_core.specs.experiment import ExperimentSpec, Resources, scions_of
from grafting_core.specs.filling import FillSpec
from grafting_core.specs.naming import Name, Word
from grafting_core.specs.operators import OperatorSpec
from grafting_core.specs.plans import DistillPlan
from grafting_core.specs.presets import PresetName

MAX_OPERATORS = 200
"""Of all offers together, before their blocks are counted."""


class OperatorChoices(Frozen):
    """Operators to have at one slot of the selected blocks."""

    replace: Slot
    layers: LayerSelector
    with_: Annotated[tuple[OperatorSpec, ...], Field(alias="with", max_length=100)]
    init: Init = "random"


class FillDocument(Frozen):
    """What a user writes: a backbone, sites times operators, and how they are distilled."""

    name: Name = "fill"
    backbone: Word
    offers: Annotated[tuple[OperatorChoices, ...], Field(max_length=200)]
    preset: PresetName = "demo"
    # Only the fields that were given count; the rest come from the preset.
    distill: DistillPlan = DistillPlan()
    budget: Budget = Budget()
    resources: Resources = Resources()


def parse_fill(document: Any) -> FillSpec:
    """Validate a plain document and resolve it. Raises SpecError as `parse_submission` does."""
    check_plain(document)
    try:
        asked = FillDocument.model_validate_json(json.dumps(document))
    except ValidationError as error:
        raise refused(error, document, FillDocument) from error
    scions = {scion.key: scion for spec in _designs(asked, document) for scion in scions_of(spec)}
    return FillSpec(
        name=asked.name, scions=tuple(scions.values()), budget=asked.budget, resources=asked.resources
    )


def _designs(asked: FillDocument, document: Any) -> list[ExperimentSpec]:
    """Every operator of every offer as a design of its own: so the rules of designs hold here as well."""
    _check_size(asked)
    shared = {name: document[name] for name in ("backbone", "preset", "distill") if name in document}
    found: list[ExperimentSpec] = []
    problems: dict[str, Problem] = {}
    empty = [f"/offers/{row}/with" for row, offer in enumerate(asked.offers) if not offer.with_]
    for place in empty or ([] if asked.offers else ["/offers"]):
        problems[place] = Problem(pointer=place, code="out-of-range", message="name at least one")
    for row, offer in enumerate(document["offers"]):
        for column, operator in enumerate(offer["with"]):
            edit = {**offer, "with": operator}
            try:
                found.append(parse_submission({**shared, "name": asked.name, "edits": [edit]}))
            except SpecError as error:
                moved = (_moved(problem, row, column) for problem in error.problems)
                problems |= {problem.pointer: problem for problem in moved}
    if problems:
        raise SpecError(list(problems.values()))
    return found


def _check_size(asked: FillDocument) -> None:
    count = sum(len(offer.with_) for offer in asked.offers)
    if count > MAX_OPERATORS:
        message = f"{count} operators in all; one pass takes at most {MAX_OPERATORS}, fill several times"
        raise SpecError([Problem(pointer="/offers", code="too-many", message=message)])


def _moved(problem: Problem, row: int, column: int) -> Problem:
    """From its place in the design to its place in the document."""
    place = problem.pointer.replace("/edits/0/with", f"/offers/{row}/with/{column}")
    return problem.model_copy(update={"pointer": place.replace("/edits/0", f"/offers/{row}")})
