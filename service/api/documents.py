"""Request bodies: one JSON or YAML document, bounded in size and read as strictly as a design file.

A route of a router with `route_class=DocumentRoute` declares `body: SomeModel`, as FastAPI's routes do, or
`body: Unresolved[SomeModel]` if it resolves the document itself. OpenAPI names both media types.
"""

import hashlib
import json
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar, get_args, get_origin

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, core_schema
from starlette.concurrency import run_in_threadpool

from grafting_core.specs.documents.errors import shown
from grafting_core.specs.documents.explain import refused
from grafting_core.specs.documents.parsing import read_document
from service.api.problems import ApiError

M = TypeVar("M", bound=BaseModel)
MEDIA_TYPES = ("application/json", "application/yaml")


class Unresolved(Generic[M]):
    """A document as sent, which OpenAPI describes as M, with the digest of its request.

    This is not a dataclass: pydantic would describe the fields of one.
    """

    def __init__(self, document: Any, request_digest: str) -> None:
        self.document, self.request_digest = document, request_digest

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        described = handler.generate_schema(get_args(source)[0])
        return core_schema.no_info_wrap_validator_function(lambda value, _: value, described)


class DocumentRequest(Request):
    """A request whose body has been read: `json()` returns the value that the route receives, from YAML
    too.
    """

    def __init__(self, request: Request, body: Any) -> None:
        others = [pair for pair in request.scope["headers"] if pair[0] != b"content-type"]
        headers = [*others, (b"content-type", MEDIA_TYPES[0].encode())]
        super().__init__({**request.scope, "headers": headers}, request.receive)
        self._document = body

    async def body(self) -> bytes:
        return b"read"

    async def json(self) -> Any:
        return self._document


class DocumentRoute(APIRoute):
    """A route that reads its body here instead of by FastAPI. Raises ApiError or SpecError."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle
        declared: Any = self.body_field.field_info.annotation

        async def read_and_handle(request: Request) -> Response:
            raw = await _raw(request)
            # In a thread: reading a megabyte here would block all other requests.
            body = await run_in_threadpool(_body, declared, request, raw)
            return await handle(DocumentRequest(request, body))

        return read_and_handle


async def _raw(request: Request) -> bytes:
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind not in MEDIA_TYPES or "content-encoding" in request.headers:
        named = f"content type {shown(kind)}" if kind else "the request names no content type"
        raise ApiError("unsupported-media-type", f"{named}; send one of {', '.join(MEDIA_TYPES)}")
    return await request.body()


def _body(declared: Any, request: Request, raw: bytes) -> Any:
    """Return the route's argument: an instance of the declared model, or the unresolved document."""
    try:
        document = read_document(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ApiError("malformed", f"the body is not UTF-8: {error.reason} at byte {error.start}") from error
    if get_origin(declared) is Unresolved:
        return Unresolved(document, _request_digest(request, raw))
    try:
        return declared.model_validate_json(json.dumps(document))
    except ValidationError as error:
        raise refused(error, document, declared) from error


def _request_digest(request: Request, body: bytes) -> str:
    """Identify equal requests: digest of method, address, query in any order, and the bytes of the body."""
    query = sorted(request.query_params.multi_items())
    head = json.dumps([request.method, request.url.path, query])
    return hashlib.sha256(head.encode() + b"\0" + body).hexdigest()
