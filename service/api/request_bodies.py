"""Reading a request body: bounded, of a known type, and without JSON's or YAML's tricks."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool

from grafting_core.specs.documents.designs import parse_submission
from grafting_core.specs.documents.errors import shown
from grafting_core.specs.documents.explain import refused
from grafting_core.specs.documents.parsing import read_document
from grafting_core.specs.experiment import ExperimentSpec
from service.api.deps import Lab
from service.api.digests import request_digest
from service.api.problems import ApiError
from service.domain.backbone_profiles import completed_card

M = TypeVar("M", bound=BaseModel)
W = TypeVar("W")
MEDIA_TYPES = ("application/json", "application/yaml")
DOCUMENTED: dict[str, type[BaseModel]] = {}
"""Models of bodies that routes read themselves, for OpenAPI."""


@dataclass(frozen=True)
class Submitted(Generic[W]):
    """Resolved work and the digest of the request it came in."""

    spec: W
    request_digest: str


def submitted(parse: Callable[[Any], W]) -> Callable[[Request], Awaitable[Submitted[W]]]:
    """A dependency: the body as work of one kind. Raises ApiError or SpecError."""

    async def read(request: Request) -> Submitted[W]:
        raw = await _raw(request)
        work = await run_in_threadpool(lambda: parse(_document(raw)))
        return Submitted(work, request_digest(request, raw))

    return read


SubmittedExperiment = Submitted[ExperimentSpec]


async def submitted_experiment(request: Request) -> SubmittedExperiment:
    """Dependency: the body as a graft, selectors resolved by what the lab has measured."""
    lab: Lab = request.app.state.lab

    def parse(document: Any) -> ExperimentSpec:
        return parse_submission(document, lambda card: completed_card(lab.database, lab.storage, card))

    return await submitted(parse)(request)


def body_of(model: type[M]) -> Callable[[Request], Awaitable[M]]:
    """A dependency: the body as this model, as strictly read as submissions. Raises ApiError or SpecError."""

    async def read(request: Request) -> M:
        return await run_in_threadpool(_validated, model, await _raw(request))

    return read


def _validated(model: type[M], raw: bytes) -> M:
    document = _document(raw)
    try:
        return model.model_validate_json(json.dumps(document))
    except ValidationError as error:
        raise refused(error, document, model) from error


def documented(model: type[BaseModel]) -> dict[str, Any]:
    """What OpenAPI says of a route that reads its body so."""
    DOCUMENTED[model.__name__] = model
    content = {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}
    return {"requestBody": {"required": True, "content": dict.fromkeys(MEDIA_TYPES, content)}}


async def read_body(request: Request) -> tuple[Any, bytes]:
    """(document, the very bytes it came as). Raises ApiError or SpecError."""
    raw = await _raw(request)
    return await run_in_threadpool(_document, raw), raw


async def _raw(request: Request) -> bytes:
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind not in MEDIA_TYPES or "content-encoding" in request.headers:
        named = f"content type {shown(kind)}" if kind else "the request names no content type"
        raise ApiError("unsupported-media-type", f"{named}; send one of {', '.join(MEDIA_TYPES)}")
    return await request.body()


def _document(raw: bytes) -> Any:
    """Called in a thread: reading a megabyte would keep all other requests waiting."""
    try:
        return read_document(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ApiError("malformed", f"the body is not UTF-8: {error.reason} at byte {error.start}") from error
