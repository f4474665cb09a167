"""Measuring a backbone, and what was measured."""

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from grafting_core.specs.analysis import AnalysisRequest, AnalysisSpec
from grafting_core.specs.documents.analyses import parse_analysis
from grafting_core.specs.documents.lookup import find_card
from grafting_core.specs.profile import BackboneProfile
from service.api.deps import LabDep
from service.api.idempotency import IdempotencyKey, accepted, check_startable, submit_once
from service.api.problems import ApiError
from service.api.request_bodies import Submitted, documented, submitted
from service.domain.backbone_profiles import newest_profile
from service.schemas.runs import SubmitAnswer

router = APIRouter(tags=["analyses"])
Body = Annotated[Submitted[AnalysisSpec], Depends(submitted(parse_analysis))]


@router.post("/analyses", status_code=202, openapi_extra=documented(AnalysisRequest))
def create_analysis(
    body: Body, lab: LabDep, response: Response, idempotency_key: IdempotencyKey
) -> SubmitAnswer:
    """Queue a measurement of attention locality and activation statistics."""
    check_startable(lab, body.spec)
    return accepted(response, submit_once(lab, body.spec, body.request_digest, idempotency_key))


@router.get("/backbones/{name:path}/profile")
def show_profile(name: str, lab: LabDep) -> BackboneProfile:
    """The newest profile of this backbone."""
    card = find_card(name)
    with lab.database.reading() as session:
        found = newest_profile(session, lab.storage, card.digest)
    if found is None:
        raise ApiError("not-found", f"no profile of {name} has been measured; `graft analyze {name}` does it")
    return found
