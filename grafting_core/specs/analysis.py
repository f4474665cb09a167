"""Asking for a measurement of a backbone itself: attention locality and activation statistics."""

import json
from typing import Annotated, Any, Literal, NoReturn

from pydantic import Field, ValidationError

from grafting_core.specs.backbone import BackboneCard, BackboneRef
from grafting_core.specs.base import Frozen
from grafting_core.specs.budget import Budget
from grafting_core.specs.canonical import digest
from grafting_core.specs.documents.errors import Problem, SpecError, shown
from grafting_core.specs.documents.explain import refused
from grafting_core.specs.documents.lookup import find_card
from grafting_core.specs.documents.parsing import check_plain
from grafting_core.specs.experiment import Resources
from grafting_core.specs.naming import Name, Word
from grafting_core.specs.plans import Seed
from grafting_core.specs.profile import default_band

ANALYSIS_RECIPE = 1
"""Bumped when the measurement's arithmetic changes."""
Bands = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1, max_length=64)]
Samples = Annotated[int, Field(ge=1, le=65_536)]
SamplingSteps = Annotated[int, Field(ge=1, le=1000)]


class AnalysisRequest(Frozen):
    """What a user writes; the defaults are the paper's setting (section 3.4)."""

    backbone: Word
    name: Name | None = None
    bands: Bands | None = None
    """Half-widths of the bands in tokens; an eighth of the tokens where left out."""
    samples: Samples = 250
    sampling_steps: SamplingSteps = 50
    seed: Seed = 0
    budget: Budget = Budget()
    resources: Resources = Resources()


class AnalysisSpec(Frozen):
    """Look at a backbone itself: attention locality and activation statistics (paper sections 3.3, 3.4)."""

    kind: Literal["analysis"] = "analysis"
    name: str
    backbone: BackboneRef
    bands: Bands
    samples: Samples = 250
    sampling_steps: SamplingSteps = 50
    seed: Seed = 0
    budget: Budget = Budget()
    resources: Resources = Resources()

    @property
    def digest(self) -> str:
        """Names the profile that is to be measured."""
        asked = self.model_dump(include={"bands", "samples", "sampling_steps", "seed"})
        return digest({"analysis": asked, "recipe": ANALYSIS_RECIPE, "backbone": self.backbone.digest})


def parse_analysis(document: Any) -> AnalysisSpec:
    """Validate a plain document and resolve it. Raises SpecError naming every problem."""
    check_plain(document)
    try:
        asked = AnalysisRequest.model_validate_json(json.dumps(document))
    except ValidationError as error:
        raise refused(error, document, AnalysisRequest) from error
    card = find_card(asked.backbone)
    bands = _bands(asked, card)
    given = asked.model_dump(include={"samples", "sampling_steps", "seed"})
    return AnalysisSpec(
        name=asked.name or f"analysis of {card.name}",
        backbone=card.ref,
        bands=bands,
        budget=asked.budget,
        resources=asked.resources,
        **given,
    )


def _bands(asked: AnalysisRequest, card: BackboneCard) -> tuple[int, ...]:
    tokens = card.dims.num_tokens
    bands = asked.bands or (default_band(tokens),)
    repeated = [band for band in bands if bands.count(band) > 1]
    beyond = [band for band in bands if band >= tokens]
    if repeated:
        _refuse_band(repeated[0], f"band {repeated[0]} is listed more than once")
    if beyond:
        reason = f"no two of the {tokens} tokens of {card.name} are {beyond[0]} apart; at most {tokens - 1}"
        _refuse_band(beyond[0], reason)
    return tuple(sorted(bands))


def _refuse_band(band: int, message: str) -> NoReturn:
    raise SpecError([Problem(pointer="/bands", code="out-of-range", message=message, given=shown(band))])
