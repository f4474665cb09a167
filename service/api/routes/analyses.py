"""Routes of analyses: queue the measurement of a backbone, and read its profile."""

from fastapi import APIRouter, Response

from grafting_core.specs.analysis import AnalysisRequest
from grafting_core.specs.documents.analyses import parse_analysis
from grafting_core.specs.documents.lookup import find_card
from grafting_core.specs.private_names import as_shown
from grafting_core.specs.profile import BackboneProfile
from service.api.deps import LabDep
from service.api.documents import DocumentRoute, Unresolved
from service.api.idempotency import IdempotencyKey, accepted, check_startable, submit_once
from service.api.problems import ApiError
from service.domain.backbone_profiles import newest_profile
from service.schemas.runs import SubmitAnswer

router = APIRouter(tags=["analyses"], route_class=DocumentRoute)


@router.post("/analyses", status_code=202)
def create_analysis(
    body: Unresolved[AnalysisRequest], lab: LabDep, response: Response, idempotency_key: IdempotencyKey
) -> SubmitAnswer:
    """Queue a measurement of attention locality and activation statistics."""
    spec = parse_analysis(body.document)
    check_startable(lab, spec)
    return accepted(response, submit_once(lab, spec, body.request_digest, idempotency_key))


@router.get("/backbones/{name:path}/profile")
def show_profile(name: str, lab: LabDep) -> BackboneProfile:
    """Return the newest profile of this backbone."""
    card = find_card(name)
    with lab.database.reading() as session:
        profile = newest_profile(session, lab.storage, card.digest)
    if profile is None:
        raise ApiError(
            "not-found", f"no profile of {name} has been measured; `graft analyze {name}` measures it"
        )
    return as_shown(profile)
