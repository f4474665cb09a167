"""Route of exports: queue the writing of a run's model as a folder that diffusers loads."""

import json

from fastapi import APIRouter, Response
from pydantic import ValidationError

from grafting_core.specs.documents.explain import refused
from grafting_core.specs.documents.lookup import find_card
from grafting_core.specs.exports import ExportRequest, ExportSpec
from service.api.deps import AppContext, LabDep
from service.api.documents import DocumentRoute, Unresolved
from service.api.idempotency import IdempotencyKey, accepted, check_startable, submit_once
from service.api.problems import ApiError
from service.api.routes.runs import readable_run
from service.domain.exports import export_of
from service.schemas.runs import SubmitAnswer

router = APIRouter(tags=["exports"], route_class=DocumentRoute)


@router.post("/exports", status_code=202)
def create_export(
    body: Unresolved[ExportRequest], lab: LabDep, response: Response, idempotency_key: IdempotencyKey
) -> SubmitAnswer:
    """Queue an export; its files are the artifacts of the run's stage `export`."""
    try:
        request = ExportRequest.model_validate_json(json.dumps(body.document))
    except ValidationError as error:
        raise refused(error, body.document, ExportRequest) from error
    spec = _resolved(lab, request)
    check_startable(lab, spec)
    return accepted(response, submit_once(lab, spec, body.request_digest, idempotency_key))


def _resolved(lab: AppContext, request: ExportRequest) -> ExportSpec:
    """Raises ApiError: not-found for a run that the reader does not see, forbidden for one that works with
    something private of another user, conflict for one without a model.
    """
    with lab.database.reading() as session:
        run = readable_run(session, lab, request.run)
        try:
            spec = export_of(session, run, request.licence)
        except ValueError as error:
            raise ApiError("conflict", str(error)) from error
    find_card(spec.backbone.name)
    return spec
