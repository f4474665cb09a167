"""Parse a document that requests an analysis of a backbone."""

import json
from typing import Any, NoReturn

from pydantic import ValidationError

from grafting_core.specs.analysis import AnalysisRequest, AnalysisSpec
from grafting_core.specs.backbone import BackboneCard
from grafting_core.specs.documents.data import check_budget
from grafting_core.specs.documents.errors import Problem, SpecError, shown
from grafting_core.specs.documents.explain import refused
from grafting_core.specs.documents.lookup import find_card
from grafting_core.specs.documents.parsing import check_plain
from grafting_core.specs.operators.attention import MultiHeadAttention
from grafting_core.specs.operators.base import operator_label
from grafting_core.specs.profile import default_band


def parse_analysis(document: Any) -> AnalysisSpec:
    """Validate a plain document and resolve it. Raises SpecError with all errors."""
    check_plain(document)
    try:
        request = AnalysisRequest.model_validate_json(json.dumps(document))
    except ValidationError as error:
        raise refused(error, document, AnalysisRequest) from error
    card = find_card(request.backbone)
    _check_attention(card)
    check_budget(request.budget, card)
    bands = _bands(request, card)
    settings = request.model_dump(include={"samples", "sampling_steps", "seed"})
    return AnalysisSpec(
        name=request.name or f"analysis of {card.name}",
        backbone=card.ref,
        bands=bands,
        budget=request.budget,
        resources=request.resources,
        **settings,
    )


def _check_attention(card: BackboneCard) -> None:
    """Refuse a graft in which an attention mask or another operator took the place of softmax attention."""
    for site in card.sites:
        operator = card.original(site)
        whole = isinstance(operator, MultiHeadAttention) and operator.heads(card.dims) == card.dims.num_heads
        if site.slot == "attention" and not whole:
            message = (
                f"{card.name} has {operator_label(operator)} at {site}; the locality that an analysis "
                "measures is that of softmax attention over all tokens"
            )
            problem = Problem(pointer="/backbone", code="does-not-fit", message=message, given=card.name)
            raise SpecError([problem])


def _bands(request: AnalysisRequest, card: BackboneCard) -> tuple[int, ...]:
    tokens = card.dims.num_tokens
    bands = request.bands or (default_band(tokens),)
    repeated = [band for band in bands if bands.count(band) > 1]
    beyond = [band for band in bands if band >= tokens]
    if repeated:
        _refuse_band(repeated[0], f"band {repeated[0]} is listed more than once")
    if beyond:
        reason = (
            f"no two of the {tokens} tokens of {card.name} are {beyond[0]} apart; the most is {tokens - 1}"
        )
        _refuse_band(beyond[0], reason)
    return tuple(sorted(bands))


def _refuse_band(band: int, message: str) -> NoReturn:
    raise SpecError([Problem(pointer="/bands", code="out-of-range", message=message, given=shown(band))])
