"""Errors as problem+json (RFC 9457): what was wrong, where in the document, and what would be right."""

import logging
import uuid
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException

from grafting_core.spec.problems import Problem, SpecError, pointer, shown

log = logging.getLogger(__name__)
MEDIA_TYPE = "application/problem+json"

CATALOGUE: Mapping[str, tuple[int, str]] = {
    "malformed": (400, "The document cannot be read as JSON or YAML"),
    "too-deep": (400, "The document is nested too deeply"),
    "not-found": (404, "There is nothing under this address"),
    "not-allowed": (405, "This address does not take this method"),
    "illegal-transition": (409, "The run's state does not allow this"),
    "too-large": (413, "The request is larger than the service takes"),
    "unsupported-media-type": (415, "The request's content type is not one the service reads"),
    "invalid": (422, "The document is not a valid submission"),
    "key-reused": (422, "An Idempotency-Key came back with another submission"),
    "not-runnable": (422, "The lab has this backbone's sizes but not its weights"),
    "internal": (500, "The service made a mistake"),
    "unavailable": (503, "Something that the service needs is not there"),
}
"""Code -> (status, title). `/problems/<code>` explains each."""


class ApiError(Exception):
    """An answer other than the one asked for."""

    def __init__(self, code: str, detail: str, problems: list[Problem] | None = None) -> None:
        self.code, self.detail, self.problems = code, detail, problems or []
        super().__init__(detail)


def answer(
    code: str, detail: str, problems: list[Problem] | None = None, status: int | None = None
) -> JSONResponse:
    """The problem document; the first problem's place and allowed values stand at the top too."""
    default, title = CATALOGUE[code]
    body: dict[str, object] = {
        "type": f"/problems/{code}",
        "title": title,
        "status": status or default,
        "code": code,
        "detail": detail,
    }
    if problems:
        body |= {"pointer": problems[0].pointer, "allowed": problems[0].allowed}
        body["errors"] = [problem.model_dump(mode="json") for problem in problems]
    headers = {"Retry-After": "2"} if body["status"] == 503 else None
    return JSONResponse(body, status_code=status or default, media_type=MEDIA_TYPE, headers=headers)


def install(app: FastAPI) -> None:
    """Make every error of the application answer like this."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(SpecError, _spec_error)
    app.add_exception_handler(RequestValidationError, _request_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(OperationalError, _database_error)
    app.add_exception_handler(Exception, _unexpected)


def _api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return answer(error.code, error.detail, error.problems)


def _spec_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, SpecError)
    first = error.problems[0]
    code = first.code if first.code in ("malformed", "too-deep") else "invalid"
    return answer(code, str(first), error.problems)


def _request_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems = [
        Problem(
            pointer=pointer(*item["loc"]),
            code=item["type"],
            message=item["msg"],
            given=shown(item.get("input")),
        )
        for item in error.errors()
    ]
    return answer("invalid", str(problems[0]), problems)


def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    codes = {404: "not-found", 405: "not-allowed", 413: "too-large"}
    return answer(codes.get(error.status_code, "invalid"), str(error.detail), status=error.status_code)


def _database_error(request: Request, error: Exception) -> JSONResponse:
    log.error("the database failed: %s", error)
    return answer("unavailable", "the database cannot be used right now")


def _unexpected(request: Request, error: Exception) -> JSONResponse:
    name = uuid.uuid4().hex
    log.error("request %s to %s failed", name, request.url.path, exc_info=error)
    return answer("internal", f"request {name} failed; the service's log says why")
