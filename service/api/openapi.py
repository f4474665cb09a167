"""The OpenAPI document, complete enough to generate a client: bodies, errors, keys."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from grafting_core.specs.documents.errors import Problem
from service.api.documents import MEDIA_TYPES
from service.api.problem_types import CATALOGUE
from service.api.problems import MEDIA_TYPE

SCHEMAS = "#/components/schemas/{model}"


class ProblemDocument(BaseModel):
    """An error (RFC 9457) of a type listed under `/problems`. `pointer` is the first place in the body."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    pointer: str | None = None
    allowed: list[str] | None = None
    errors: list[Problem] | None = None
    left_out: int | None = None
    """Number of problems besides those in `errors`."""


def described(app: FastAPI) -> dict[str, Any]:
    """Return FastAPI's schema with both media types of bodies, the errors, and the key as bearer token."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        _add_schemas(document["components"])
        for operations in document["paths"].values():
            for operation in operations.values():
                _add_errors(operation["responses"])
                if body := operation.get("requestBody"):
                    body["content"] = dict.fromkeys(MEDIA_TYPES, body["content"]["application/json"])
        document["security"] = [{"key": []}]
        app.openapi_schema = document
    return app.openapi_schema


def _add_schemas(components: dict[str, Any]) -> None:
    problems = models_json_schema([(ProblemDocument, "validation")], ref_template=SCHEMAS)[1]
    for name, schema in problems["$defs"].items():
        components["schemas"].setdefault(name, schema)
    for unused in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(unused, None)
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}


def _add_errors(responses: dict[str, Any]) -> None:
    """Add all statuses of the catalogue to a route: limits and authentication may answer with any of them."""
    content = {MEDIA_TYPE: {"schema": {"$ref": SCHEMAS.format(model="ProblemDocument")}}}
    for status in sorted({entry.status for entry in CATALOGUE.values()}):
        titles = [entry.title for entry in CATALOGUE.values() if entry.status == status]
        responses.setdefault(str(status), {"description": "; or ".join(titles), "content": content})
    responses["422"] = {"description": "The request is not valid", "content": content}
